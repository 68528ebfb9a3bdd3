"""Secrets out of anything that leaves the process (pure).

Two nets: the secrets that are known (in the forms in which they travel), and the shapes of well-known keys. A value
that is neither known nor of a known shape is not found; nothing here can make an unknown secret safe.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast
from urllib.parse import quote, quote_plus

MASK: Final = "[redacted]"
MIN_LENGTH: Final = 6
"""Shorter values are not taken as secrets: replacing them would tear up ordinary text."""

_SHAPES: Final = re.compile(
    r"""
      \b[spr]k[-_](?=[A-Za-z_-]{0,200}[0-9])[A-Za-z0-9_-]{16,}   # OpenAI, Anthropic, Stripe
    | \bgh[pousr]_[A-Za-z0-9]{20,} | \bgithub_pat_[A-Za-z0-9_]{20,}
    | \bglpat-[A-Za-z0-9_-]{16,}
    | \bxox[abeoprs]-[A-Za-z0-9-]{10,}
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b
    | \bAIza[A-Za-z0-9_-]{30,}
    | \bhf_[A-Za-z0-9]{20,}
    | \bnpm_[A-Za-z0-9]{30,} | \bpypi-AgE[A-Za-z0-9_-]{16,} | \bdckr_pat_[A-Za-z0-9_-]{20,}
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}   # JSON web token
    | (?<=://)[^\s/:@"']{1,100}:[^\s/@"']{1,200}(?=@)                # user:password in an address
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----[\s\S]{0,20000}?-----END\ [A-Z ]*PRIVATE\ KEY-----
    """,
    re.VERBOSE,
)
_SECRET_NAME: Final = re.compile(r"(?i)(?:API_?KEY|ACCESS_KEY|SECRET_KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")
_HEADERS: Final = re.compile(
    r"""(?i)\b(?P<name>authorization["']?\s*[:=]\s*["']?(?:bearer|basic|token)\s+|x-api-key["']?\s*[:=]\s*["']?)"""
    r"""[A-Za-z0-9+/=._~-]{4,} | \b(?P<scheme>bearer\s+)[A-Za-z0-9+/=._~-]{16,}""",
    re.VERBOSE,
)
_HINTS: Final = (
    "sk-", "sk_", "pk-", "pk_", "rk_", "rk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox",
    "AKIA", "ASIA", "AIza", "hf_", "npm_", "pypi-", "dckr_pat", "eyJ", "://", "-----BEGIN", "earer", "EARER",
    "uthorization", "UTHORIZATION", "pi-key", "PI-KEY", "pi-Key", "PI-Key",
)  # fmt: skip
"""Text without any of these has none of the shapes: the cheap way out."""


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values of an environment that are secrets by the end of their names, as all providers' keys are."""
    return tuple(value for name, value in environment.items() if value and _SECRET_NAME.search(name))


class Redactor:
    """Replaces secrets in text and in JSON values. Immutable; safe to share."""

    def __init__(self, secrets: Iterable[str] = (), *, shapes: bool = True) -> None:
        """Makes a redactor.

        Args:
            secrets: values that must not leave. Each is also found base64-encoded (also in the middle of a longer
                encoded text), URL-encoded and JSON-escaped. Shorter than `MIN_LENGTH`: ignored.
            shapes: whether what looks like a well-known key is replaced as well.
        """
        forms = {form for secret in secrets if len(secret) >= MIN_LENGTH for form in _forms(secret)}
        longest_first = sorted(forms, key=lambda form: (-len(form), form))
        self._shapes = shapes
        self._forms = longest_first
        self._known = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        """`text` with every secret replaced by `MASK`; the same object when there is none."""
        if self._known is not None and self._known.search(text):
            text = self._known.sub(MASK, text)
        if self._shapes and any(hint in text for hint in _HINTS):
            text = _SHAPES.sub(MASK, text)
            text = _HEADERS.sub(lambda match: (match["name"] or match["scheme"]) + MASK, text)
        return text

    def masked(self, text: str, *, ends_early: bool = False) -> str:
        """As `text`; of a text that was cut at its end, also the beginning of a secret that stands there."""
        text = self.text(text)
        if not ends_early:
            return text
        found = max((_overlap(text, form) for form in self._forms), default=0)
        return text[: len(text) - found] + MASK if found else text

    def value(self, value: Any) -> Any:
        """A JSON value with every secret replaced, keys included; the same object when there is none."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            items = cast("Mapping[Any, Any]", value)
            new = {self.text(k) if isinstance(k, str) else k: self.value(v) for k, v in items.items()}
            same = len(new) == len(items) and all(k in new and new[k] is v for k, v in items.items())
            return cast("Any", value) if same else new
        if isinstance(value, list | tuple):
            entries = cast("list[Any]", value)
            changed = [self.value(entry) for entry in entries]
            return entries if all(a is b for a, b in zip(changed, entries, strict=True)) else changed
        return value


def _overlap(text: str, form: str) -> int:
    """How many characters at the end of a text are the beginning of a form, if that is enough to tell something."""
    most = min(len(form) - 1, len(text))
    return next((n for n in range(most, MIN_LENGTH - 1, -1) if text.endswith(form[:n])), 0)


def _forms(secret: str) -> set[str]:
    """The ways in which a secret travels: also line by line, and as a text that was decoded with bytes replaced."""
    lines = secret.split("\n")
    parts = {part for line in lines if len(lines) > 1 for part in _forms(line.strip("\r"))}
    return parts | _whole_forms(secret)


def _whole_forms(secret: str) -> set[str]:
    raw = secret.encode("utf-8", "surrogatepass")
    quoted = {
        quote(secret, safe="", errors="surrogatepass"),
        quote(secret, errors="surrogatepass"),
        quote_plus(secret, errors="surrogatepass"),
    }
    forms = {
        secret,
        secret.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
        *([secret.lower()] if any(map(str.isdigit, secret)) else ()),  # as part of a host's name
        *quoted,
        *(re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), text) for text in quoted),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(json.dumps(secret)[1:-1])[1:-1],
    }
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms.update(_base64_cores(raw, encode))
    return {form for form in forms if len(form) >= MIN_LENGTH}


def _base64_cores(raw: bytes, encode: Any) -> set[str]:
    """The characters that encode nothing but the secret, for each of the three alignments inside a longer text."""
    cores = {encode(raw).decode().rstrip("=")}
    for lead in range(3):
        first = -(-lead * 4 // 3)  # characters that also hold bits of what comes before
        bits = (lead + len(raw)) * 8
        text = encode(b"\0" * lead + raw).decode()
        core = text[first : bits // 6]
        if len(core) >= MIN_LENGTH + 2:
            cores.add(core)
    return cores
