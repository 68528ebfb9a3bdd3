"""Keys that are not what they look like (pure).

Three tricks are refused: characters that cannot be seen, spellings that are not in Unicode normal form, and words that
mix letters of scripts that have the same shapes, or are made of such letters alone.
"""

from __future__ import annotations

import unicodedata
from typing import Final

_TWINS: Final = str.maketrans(
    "аеорсухіјѕһԁԛԝкмтвнАЕОРСУХІЈЅНКМТВαονρτυικχΑΒΕΖΗΙΚΜΝΟΡΤΥΧօոսհցԍաɡıℓ",
    "aeopcyxijshdqwkmtbhAEOPCYXIJSHKMTBaovptuikxABEZHIKMNOPTYXonuhgGwgil",
)
"""Letters of other scripts and the Latin letter each is taken for (after UTS 39, the part that fits our keys)."""
_ALIKE: Final = ("LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE", "COPTIC")
"""Scripts that share shapes."""
_UNSEEN: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")


def problem_of(key: str) -> str | None:
    """Why a key is not what it looks like, as the end of a sentence; None when nothing is wrong."""
    if key.isascii():
        return None
    for char in key:
        if char in _UNSEEN or unicodedata.category(char) in ("Cf", "Cn", "Co", "Zl", "Zp") or _selector(char):
            return f"holds the invisible character U+{ord(char):04X}"
    if not unicodedata.is_normalized("NFC", key):
        return "is not in Unicode normal form NFC"
    if not unicodedata.is_normalized("NFKC", key):
        return "holds compatibility characters, such as full-width letters"
    scripts = {unicodedata.name(c, "").partition(" ")[0] for c in key if c.isalpha()}
    alike = [s.capitalize() for s in _ALIKE if s in scripts]
    if len(alike) > 1:
        return f"mixes {alike[0]} and {alike[1]} letters"
    if key.translate(_TWINS).isascii():
        return "is made of letters that look like Latin ones"
    return None


def _selector(char: str) -> bool:
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
