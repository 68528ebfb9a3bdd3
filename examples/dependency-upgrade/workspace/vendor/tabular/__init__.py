"""Rows as text."""

__version__ = "0.9.0"
__licence__ = "BSD-3-Clause"


def table(rows):
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows)]
    return "\n".join("  ".join(str(c).ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows)
