"""Bills."""

from money import euros
from tabular import table


def rows(items):
    """What a bill lists, with amounts as text; items are (what, cents)."""
    return [(what, euros(cents)) for what, cents in (*items, ("total", sum(cents for _, cents in items)))]


def bill(items):
    """A bill as text."""
    return table(rows(items)) + "\n"
