"""Durations as text."""

__version__ = "1.0.0"
__licence__ = "MIT"


def minutes(count):
    return f"{count // 60}h{count % 60:02}m"
