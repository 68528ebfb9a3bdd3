"""Texts as parts of addresses."""

__version__ = "1.2.0"
__licence__ = "MIT"


def slug(text, sep="_"):
    return sep.join(text.lower().split())
