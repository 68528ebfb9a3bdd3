"""Sizes of parcels, in whole centimetres."""


def girth(length, width, height):
    """The longest side, plus once around the other two."""
    longest = max(length, width, height)
    return longest + 2 * (length + width + height - longest)


def is_bulky(length, width, height):
    """Whether a parcel is charged as bulky: a girth of more than 300."""
    return girth(length, width, height) >= 300
