"""Opening hours of a shop as spans of minutes after midnight: (540, 720) is from 9:00 to 12:00."""

Span = tuple[int, int]


def merge(spans: list[Span]) -> list[Span]:
    """Joins spans that overlap or touch, and returns them in order."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def is_open(spans: list[Span], minute: int) -> bool:
    """Tells whether the shop is open; in the minute in which a span ends, it is closed."""
    return any(start <= minute < end for start, end in spans)
