"""How long to wait before another try."""


def wait(attempt):
    """Seconds before attempt number `attempt`: none before the first, then 1, 2, 4 and so on."""
    return 0 if attempt == 1 else 2 ** (attempt - 2)
