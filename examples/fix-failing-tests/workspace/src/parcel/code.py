"""Codes on parcels: digits, the last of which is a check digit."""


def check_digit(digits):
    """The digit after these: what their sum, every second one counted three times, lacks to a multiple of 10."""
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits))
    return str(10 - total % 10)
