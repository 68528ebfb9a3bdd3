"""Bills."""

from money import euros
from tabular import table


def bill(items):
    """A bill as text; items are (what, cents)."""
    rows = [(what, euros(cents)) for what, cents in items]
    rows.append(("total", euros(sum(cents for _, cents in items))))
    return table(rows) + "\n"
