"""References to secrets. Files and plans hold the reference; only the one place that needs the value reveals it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from toka.config.load import read_source
from toka.errors import MissingError

_REFERENCE: Final = re.compile(r"\$\{(?:env:(?P<env>[A-Za-z_][A-Za-z0-9_]{0,199})|file:(?P<file>/[^}\0]{1,1000}))\}")


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is kept. Its text form is the reference; no method but `reveal` knows the value.

    Attributes:
        kind: `env` or `file`.
        name: the variable, or the absolute path of the file.
    """

    kind: Literal["env", "file"]
    name: str

    def __repr__(self) -> str:
        """The reference."""
        return f"${{{self.kind}:{self.name}}}"

    __str__ = __repr__

    def reveal(self, environment: Mapping[str, str]) -> str:
        """The value.

        Args:
            environment: the variables to look in.

        Returns:
            The value; of a file its text without white space at both ends.

        Raises:
            MissingError: the variable is not set, or the file cannot be read or is empty. The message never holds
                any part of a value.
        """
        if self.kind == "env":
            value = environment.get(self.name, "")
        else:
            source = read_source(Path(self.name))
            value = "" if source.broken else source.text.strip()
        if not value:
            what = "is not set" if self.kind == "env" else "cannot be read or is empty"
            raise MissingError(f"{self} {what}")
        return value


def parse_secret(text: object) -> Secret | None:
    """`${env:NAME}` or `${file:/path}` as a reference; None when it is anything else."""
    match = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    return Secret("env", match["env"]) if match["env"] else Secret("file", match["file"])
