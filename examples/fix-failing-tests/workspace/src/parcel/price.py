"""Prices, in cents."""

STEPS = ((1000, 450), (5000, 690), (10000, 1090))
"""Up to so many grams, so many cents."""


def price(grams):
    """What a parcel of this weight costs.

    Raises:
        ValueError: it weighs nothing, or more than is taken.
    """
    for most, cents in STEPS:
        if grams < most:
            return cents
    raise ValueError(f"no parcel weighs {grams} g")
