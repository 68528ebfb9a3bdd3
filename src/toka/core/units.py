"""Quantities as people write them, and back.

Every parser takes text or a bare number, follows one strict grammar (no other spelling is guessed), and raises
UnitError with the accepted forms. Every formatter writes a form its parser reads back to the same value.
"""

from __future__ import annotations

import math
import re
from typing import Final

BYTE_FORMS: Final = "a whole number of bytes, or a number with B, KB, MB, GB or TB (1 MB = 1024 * 1024): 512MB, 1.5GB"
CPU_FORMS: Final = 'a share of cores: "75%" (100% = one core, more is allowed) or a number of cores: "0.5", 2'
DURATION_FORMS: Final = "a number with ms, s, m, h or d, or several in that order from large to small: 30s, 2h, 1h30m"
MONEY_FORMS: Final = "US dollars: $2.50, $1, 0.40"
RATE_FORMS: Final = "bits per second: 100Mbps, 10Kbps, 1Gbps, 800bps"
COUNT_FORMS: Final = "a whole number, or one with k or M: 20000, 200k, 1.5M"

_NUMBER = r"(?P<number>[0-9]{1,18}(?:\.[0-9]{1,9})?)"
_BYTES = re.compile(_NUMBER + r" ?(?P<unit>B|KB|MB|GB|TB)?")
_CPU = re.compile(_NUMBER + r" ?(?P<unit>%)?")
_DURATION = re.compile(
    r"(?:([0-9]+(?:\.[0-9]+)?)d)?(?:([0-9]+(?:\.[0-9]+)?)h)?(?:([0-9]+(?:\.[0-9]+)?)m(?!s))?"
    r"(?:([0-9]+(?:\.[0-9]+)?)s)?(?:([0-9]+)ms)?"
)
_MONEY = re.compile(r"\$?" + _NUMBER)
_RATE = re.compile(_NUMBER + r" ?(?P<unit>bps|Kbps|Mbps|Gbps)")
_COUNT = re.compile(_NUMBER + r"(?P<unit>k|M)?")

_BYTE_SIZE = {"B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_RATE_SIZE = {"bps": 1, "Kbps": 10**3, "Mbps": 10**6, "Gbps": 10**9}
_COUNT_SIZE = {None: 1, "k": 1000, "M": 1_000_000}
_LONGEST = 100 * 365 * 86_400.0
_MOST_CORES = 100_000.0
_MOST_DOLLARS = 1e9
_SECONDS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)


class UnitError(ValueError):
    """The text is not a quantity of the wanted kind; the message shows the accepted forms."""

    def __init__(self, value: object, what: str, forms: str) -> None:
        super().__init__(f"{value!r} is not {what}; write {forms}")
        self.forms = forms


def parse_bytes(value: str | int) -> int:
    """Bytes as a whole number. Raises UnitError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _BYTES.fullmatch(value) if isinstance(value, str) else None
    if match is None or ("." in match["number"] and match["unit"] in (None, "B")):
        raise UnitError(value, "a size", BYTE_FORMS)
    return _times(match["number"], _BYTE_SIZE[match["unit"] or "B"])


def format_bytes(size: int) -> str:
    """The largest unit that divides `size` without a rest: 536870912 -> 512MB."""
    for unit in ("TB", "GB", "MB", "KB"):
        if size and size % _BYTE_SIZE[unit] == 0:
            return f"{size // _BYTE_SIZE[unit]}{unit}"
    return f"{size}B"


def parse_cpu(value: str | float) -> float:
    """Cores, exact to 1e-9: "75%" -> 0.75, "0.5" -> 0.5. Zero cores are refused. Raises UnitError."""
    if isinstance(value, str):
        match = _CPU.fullmatch(value)
        cores = float(match["number"]) / (100 if match["unit"] else 1) if match else 0.0
    else:
        cores = _float(value)
    cores = round(cores, 9) if math.isfinite(cores) else 0.0
    if not 0 < cores <= _MOST_CORES:
        raise UnitError(value, "a CPU limit", CPU_FORMS)
    return cores


def format_cpu(cores: float) -> str:
    """Percent of one core where that is a whole number, else cores: 0.75 -> 75%, 0.125 -> 0.125."""
    percent = round(cores * 100)
    return f"{percent}%" if percent / 100 == cores else f"{cores:.9f}".rstrip("0").rstrip(".")


def parse_duration(value: str | float) -> float:
    """Seconds. A bare number is refused: its unit would be a guess. Raises UnitError."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if match is None or len(str(value)) > 60:
        raise UnitError(value, "a duration", DURATION_FORMS)
    total = math.fsum(float(part) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True) if part)
    if not 0 < total <= _LONGEST:
        raise UnitError(value, "a duration above zero and below a century", DURATION_FORMS)
    return round(total, 9)


def format_duration(seconds: float) -> str:
    """Days to milliseconds, rounded to a millisecond: 5400 -> 1h30m; below half a millisecond 1ms."""
    rest = max(1, round(seconds * 1000))
    out: list[str] = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size)
        if count:
            out.append(f"{count}{unit}")
    return "".join(out)


def parse_money(value: str | float) -> float:
    """US dollars, exact to 1e-9. Raises UnitError."""
    if isinstance(value, str):
        match = _MONEY.fullmatch(value)
        amount = float(match["number"]) if match else -1.0
    else:
        amount = _float(value)
    if not 0 <= amount <= _MOST_DOLLARS:  # false for what is not a number, too
        raise UnitError(value, "an amount of money", MONEY_FORMS)
    return round(amount, 9)


def format_money(usd: float) -> str:
    """Dollars with at least two and at most nine decimals: 2.5 -> $2.50."""
    whole, _, decimals = f"{usd:.9f}".partition(".")
    return f"${whole}.{decimals.rstrip('0').ljust(2, '0')}"


def parse_rate(value: str | float) -> int:
    """Bits per second; the prefixes are decimal, as networks count. Raises UnitError."""
    match = _RATE.fullmatch(value) if isinstance(value, str) else None
    rate = _times(match["number"], _RATE_SIZE[match["unit"]]) if match else 0
    if rate <= 0:
        raise UnitError(value, "a bandwidth", RATE_FORMS)
    return rate


def format_rate(bits: int) -> str:
    """The largest unit that divides `bits` without a rest: 100000000 -> 100Mbps."""
    for unit in ("Gbps", "Mbps", "Kbps"):
        if bits and bits % _RATE_SIZE[unit] == 0:
            return f"{bits // _RATE_SIZE[unit]}{unit}"
    return f"{bits}bps"


def parse_count(value: str | int) -> int:
    """A whole number such as a number of tokens. Raises UnitError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _COUNT.fullmatch(value) if isinstance(value, str) else None
    count = float(match["number"]) * _COUNT_SIZE[match["unit"]] if match else 0.5
    if match is None or abs(count - round(count)) > 1e-6:
        raise UnitError(value, "a count", COUNT_FORMS)
    return _times(match["number"], _COUNT_SIZE[match["unit"]])


def _times(number: str, size: int) -> int:
    """Whole numbers exactly, others rounded."""
    return round(float(number) * size) if "." in number else int(number) * size


def _float(value: object) -> float:
    """A number as a float; not a number when it is none, or beyond one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
