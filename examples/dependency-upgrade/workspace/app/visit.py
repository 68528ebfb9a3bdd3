"""How long a visit takes."""

from spans import minutes


def takes(count):
    return "takes " + minutes(count)
