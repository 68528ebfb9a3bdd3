"""Amounts of money as text."""

__version__ = "3.1.0"
__licence__ = "Apache-2.0"


def euros(cents):
    return f"{cents // 100}.{cents % 100} EUR"
