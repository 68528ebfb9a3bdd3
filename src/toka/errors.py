"""Every error Toka raises on purpose.

TokaError                    the base; `exit_code` says how a command ends
├── UsageError               the command line or an API call asks for something that cannot be (exit 2)
├── ConfigError              the specs or settings are wrong; carries every finding, not the first (exit 3)
├── MissingError             something this machine should have is absent (exit 4)
│   ├── CheckpointUnavailable  what checkpoints of the workspace need: git
│   ├── ModelUnavailable     no model, or none that answers now; says whether a retry may help
│   └── SandboxUnavailable   no sandbox of the wanted strength
├── CapabilityDenied         policy refuses (exit 5)
├── CheckpointRefused        a checkpoint cannot be taken or put back now; says why (exit 6)
├── LimitExceeded            a limit or budget is used up; names scope, limit, use and unit (exit 6)
├── NotFound                 no such run, agent, record (exit 9)
├── ModelError               a model call failed; says whether a retry may help (exit 1)
│   └── ModelRefused         the provider will not answer this request, whatever we repeat
├── SandboxError             the sandbox failed while it was in use (exit 1)
└── JournalError             the record cannot be read or written (exit 75)
    ├── StaleEpoch           another executor owns this stream now; nothing was written
    ├── JournalUnavailable   the state directory or its database cannot be opened (exit 4)
    ├── JournalGone          it vanished while it was open: a StaleEpoch and a JournalUnavailable (exit 4)
    ├── RunBusy              a live process executes this run
    └── JournalCorrupt       the record contradicts itself (exit 70)

A failing command, tool or task is a value. An exception here means that Toka could not do its job.
Errors carry ids and plain values, never live objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol


class TokaError(Exception):
    """Base of all errors that Toka raises on purpose.

    The message says what went wrong and where; `hint` says what to do next (None: nothing sensible to add).
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TokaError):
    """The caller asked for something that cannot be done as asked."""

    exit_code = 2


class FindingLike(Protocol):
    """What ConfigError needs of a finding: its code, and its text, short and long."""

    @property
    def code(self) -> str:
        """The stable code, such as TK2004."""
        ...

    @property
    def text(self) -> str:
        """One line: file:line:column, code and message."""
        ...

    def render(self) -> str:
        """Several lines for a person: the message, the place, the source line, help."""
        ...


class ConfigError(TokaError):
    """Specs or settings cannot be used. `findings` holds all that was found, in the order of the files."""

    exit_code = 3

    def __init__(self, message: str, findings: Sequence[FindingLike] = (), *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.findings = tuple(findings)


class MissingError(TokaError):
    """This machine lacks something that the request needs."""

    exit_code = 4


class ModelUnavailable(MissingError):
    """No model answers.

    Attributes:
        retryable: True when the same request may succeed later (connection, 429, 5xx).
        tried: what was looked for, one line each, in order.
    """

    def __init__(
        self, message: str, *, retryable: bool = False, tried: Sequence[str] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retryable = retryable
        self.tried = tuple(tried)


class SandboxUnavailable(MissingError):
    """No sandbox of the wanted strength can be had. Nothing was started outside one."""


class CheckpointUnavailable(MissingError):
    """Checkpoints of the workspace cannot be had: git is missing."""


class CheckpointRefused(TokaError):
    """A checkpoint was not taken, or not put back.

    Attributes:
        reason: `quota` or `disk`: it has no room, nothing of it was kept · `scope`: it does not hold what was asked for
            · `changed`: the workspace does not stand still · `damaged`: the store is · `ignored`: git does not tell
            which files are · `bad-run`: the run's id cannot be a name.
    """

    exit_code = 6

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class CapabilityDenied(TokaError):
    """Policy refuses what was asked; `rule` names the deciding rule."""

    exit_code = 5

    def __init__(self, message: str, *, rule: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.rule = rule


class LimitExceeded(TokaError):
    """A limit is used up.

    Attributes:
        scope: "task", "agent", "run" or "day", with the name where there is one ("agent fixer").
        limit: the bound, in `unit`.
        used: what was used before the refused act, in `unit`.
        unit: "tokens", "USD", "model calls", "tool calls", "seconds" ...
    """

    exit_code = 6

    def __init__(self, scope: str, limit: float, used: float, unit: str, *, hint: str | None = None) -> None:
        super().__init__(f"{scope}: {_number(used)} of {_number(limit)} {unit} used", hint=hint)
        self.scope = scope
        self.limit = limit
        self.used = used
        self.unit = unit

    def to_json(self) -> dict[str, Any]:
        """{"scope", "limit", "used", "unit"}."""
        return {"scope": self.scope, "limit": self.limit, "used": self.used, "unit": self.unit}


class NotFound(TokaError):
    """The thing named does not exist."""

    exit_code = 9


class ModelError(TokaError):
    """A model call failed. `retryable` is decided by the adapter, which knows the provider."""

    exit_code = 1

    def __init__(self, message: str, *, kind: str, retryable: bool, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.retryable = retryable


class ModelRefused(ModelError):
    """The provider rejects the request itself (bad key, unknown model, invalid request)."""

    def __init__(self, message: str, *, kind: str = "refused", hint: str | None = None) -> None:
        super().__init__(message, kind=kind, retryable=False, hint=hint)


class SandboxError(TokaError):
    """The sandbox broke while it was in use; what it was doing may or may not have happened."""

    exit_code = 1


class JournalError(TokaError):
    """The record cannot be read or written."""

    exit_code = 75


class JournalUnavailable(JournalError):
    """The state directory or its database cannot be opened; nothing was started."""

    exit_code = 4


class StaleEpoch(JournalError):
    """The writer no longer owns the stream. Nothing was written; the writer must stop."""


class JournalGone(StaleEpoch, JournalUnavailable):
    """The database was deleted, moved or replaced while it was open: what is written now, nobody will find.

    A StaleEpoch, since whoever writes must stop at once; it ends a command as an unusable state directory does.
    """


class RunBusy(JournalError):
    """A live process executes this run already."""


class JournalCorrupt(JournalError):
    """The record contradicts itself."""

    exit_code = 70


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 else f"{value:,.0f}"
