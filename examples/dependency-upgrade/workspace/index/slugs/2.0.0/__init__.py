"""Texts as parts of addresses."""

__version__ = "2.0.0"
__licence__ = "MIT"


def slug(text, *, separator="-"):
    words = "".join(char if char.isalnum() else " " for char in text.lower())
    return separator.join(words.split())
