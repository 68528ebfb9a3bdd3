"""The tool that makes HTTP requests. None is made on the host: `inside_http.py` makes it in the sandbox.

It speaks HTTPS with the host itself, through the agent's proxy, which only connects. For hosts with a key of the
operator's, the proxy speaks HTTPS in its place and adds the key, so that no agent ever holds it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from toka.core.capability import Capability, CapabilityError
from toka.core.catalogue import NETWORK_ACCESS
from toka.core.effect import Effect
from toka.sandbox.command import CommandResult
from toka.sandbox.egress_rules import plain_host
from toka.tools.inside import inside
from toka.tools.shell import ending
from toka.tools.tool import Arguments, Probed, ToolContext, ToolResult, cut

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
REPEATABLE: Final = ("GET", "HEAD")
BODY_BYTES: Final = 64 * 1024
"""Of a request: what fits into one message to the sandbox."""
HEAD_BYTES: Final = 96 * 1024
"""Of what is told about a reply beside its body."""
FIELDS_BYTES: Final = 16 * 1024
"""Of the header fields of a request, all together."""
SHOWN: Final = frozenset(
    ("content-type", "content-length", "location", "link", "retry-after", "etag", "last-modified", "allow",
     "www-authenticate", "x-ratelimit-remaining", "x-ratelimit-reset")
)  # fmt: skip
"""Fields of a reply's header that the model is shown."""
SHOWN_CHARACTERS: Final = 1_000
"""Of one such field."""
RESERVED: Final = frozenset(
    ("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect",
     "accept-encoding", "idempotency-key")
)  # fmt: skip
"""Fields that the request gets by itself, or that would change where it ends."""
_URL: Final = re.compile(r"[\x21-\x7e]{1,8000}")
_FIELD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\u00a0-\uffff]*")
_NO_HOSTS: Final[Mapping[str, int]] = MappingProxyType({})


class HttpRequest:
    """One request to a host that the agent may reach. Redirects are told, not followed.

    After a crash in the middle, GET and HEAD are made again; whether another request happened, a person is asked.
    """

    name = "http_request"
    effect: Effect = Effect.CHECKABLE
    description = (
        "Make one HTTPS request to a host you were granted. Gives the status, the main header fields and the body as "
        "text; a binary body is only described, a long one is cut. Redirects are not followed. Keys that your "
        "operator keeps for a host are added outside: never send one yourself."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "minLength": 1, "maxLength": 8000, "description": "https://HOST/PATH?QUERY"},
            "method": {"enum": list(METHODS), "description": "Default GET."},
            "headers": {
                "type": "object",
                "additionalProperties": {"type": "string", "maxLength": 8000},
                "maxProperties": 50,
                "description": "Header fields, such as Accept or Content-Type.",
            },
            "body": {"type": "string", "maxLength": BODY_BYTES, "description": "Text to send; not with GET or HEAD."},
        },
        "required": ["url"],
        "additionalProperties": False,
    }

    def __init__(self, keyed: Mapping[str, int] = _NO_HOSTS) -> None:
        """Makes the tool.

        Args:
            keyed: hosts to which the proxy adds a key, with the port where they take HTTPS.
        """
        self._keyed = keyed

    def needs(self, args: Arguments) -> tuple[Capability, ...]:
        """Reaching the host at its port.

        Raises:
            CapabilityError: the address is none of a public host, or a header field or the body cannot be sent.
        """
        host, port, _ = address(args["url"])
        _fields(args)
        if "body" in args and _method(args) in REPEATABLE:
            raise CapabilityError(f"{_method(args)} takes no body")
        if (size := len(args.get("body", "").encode())) > BODY_BYTES:
            raise CapabilityError(f"the body has {size} bytes; {BODY_BYTES} can be sent")
        return (Capability(NETWORK_ACCESS, hosts=(host,), ports=(str(port),)),)

    async def call(self, args: Arguments, ctx: ToolContext) -> ToolResult:
        """See Tool."""
        host, port, path = address(args["url"])
        method, body = _method(args), args.get("body")
        own = [["Accept-Encoding", "identity"], ["Connection", "close"]]
        own += [] if method in REPEATABLE else [["Idempotency-Key", ctx.key]]
        ask = {
            "host": host,
            "port": port,
            "path": path,
            "method": method,
            "headers": [*_fields(args), *own],
            "body": None if body is None else base64.b64encode(body.encode()).decode(),
            "keyed": self._keyed.get(host) == port,
            "limit": ctx.output_limit,
            "timeout": ctx.timeout_s,
        }
        hands = await ctx.hands()
        result = await hands.run(
            inside("inside_http.py"),
            env={"TOKA_REQUEST": json.dumps(ask)},
            timeout_s=ctx.timeout_s,
            output_limit=ctx.output_limit + HEAD_BYTES,
            chosen_by="tool",
        )
        return _told(result, ctx)

    async def evidence(self, args: Arguments, ctx: ToolContext) -> dict[str, Any]:  # noqa: ARG002
        """Whether the request may simply be made again."""
        return {"repeatable": _method(args) in REPEATABLE}

    async def probe(self, args: Arguments, evidence: dict[str, Any], ctx: ToolContext) -> Probed:  # noqa: ARG002
        """No trace of a request can be looked for: one that changes nothing is made again, any other is in doubt."""
        return "not-happened" if evidence["repeatable"] else "unknown"

    def happened(self, args: Arguments, evidence: dict[str, Any]) -> ToolResult:  # noqa: ARG002
        """See CheckableTool."""
        return ToolResult("the request was made; its reply is lost")


def address(url: str) -> tuple[str, int, str]:
    """Host in lower case, port, and path with query of an https address.

    Raises:
        CapabilityError: it is no such address, or not of a public host's name.
    """
    form = "write https://HOST/PATH, with a host's name, and other than ASCII letters percent-encoded"
    if not _URL.fullmatch(url):
        raise CapabilityError(f"this is no address; {form}")
    try:
        parts = urlsplit(url)
        port = parts.port if parts.port is not None else 443
    except ValueError:
        raise CapabilityError(f"this is no address; {form}") from None
    if parts.scheme != "https":
        raise CapabilityError(f"only https is spoken; {form}")
    if "@" in parts.netloc or "\\" in parts.netloc:
        raise CapabilityError(f"an address with a user or password in it is refused; {form}")
    host = plain_host(parts.hostname or "")
    if host is None or not 0 < port < 65536:
        raise CapabilityError(f"the address names no public host; {form}")
    return host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _method(args: Arguments) -> str:
    return args.get("method", "GET")


def _fields(args: Arguments) -> list[list[str]]:
    """The call's header fields. Raises CapabilityError."""
    fields: list[list[str]] = []
    for name, value in args.get("headers", {}).items():
        if not _FIELD.fullmatch(name) or not _VALUE.fullmatch(value):
            raise CapabilityError("a header field is a name and one line of text")
        if name.lower() in RESERVED or name.lower().startswith("proxy-"):
            raise CapabilityError(f"the header field {name} is set by Toka")
        fields.append([name, value])
    if (size := len(json.dumps(fields))) > FIELDS_BYTES:
        raise CapabilityError(f"the header fields have {size} bytes; {FIELDS_BYTES} can be sent")
    return fields


def _told(result: CommandResult, ctx: ToolContext) -> ToolResult:
    head, _, body = result.output.partition(b"\n")
    try:
        reply: dict[str, Any] = json.loads(head) if result.exit_code == 0 else {}
    except ValueError:
        reply = {}
    if "error" in reply:
        return ToolResult(f"no reply: {reply['error']}", failed=True)
    if "status" not in reply:
        said = result.output.decode("utf-8", "replace").strip().rpartition("\n")[2]
        note = "no complete reply in time" if result.ended == "timeout" else ending(result, ctx.timeout_s) or "no reply"
        return ToolResult(cut(f"{note}: {said}" if said else note, ctx.output_limit), failed=True)
    headers: dict[str, str] = dict(reply["headers"])
    lines = [f"HTTP {reply['status']} {reply['phrase']}".rstrip()]
    lines += [f"{name}: {value[:SHOWN_CHARACTERS]}" for name, value in reply["headers"] if name in SHOWN]
    text = "\n".join([*lines, "", _body(body, headers, reply["matter"])]).rstrip()
    return ToolResult(
        text,
        failed=reply["status"] >= 400,
        data={"status": reply["status"], "bytes": len(body), "wall_s": round(result.wall_s, 3), **result.resources},
    )


def _body(body: bytes, headers: Mapping[str, str], matter: str) -> str:
    """A body as text for the model, with a note when it is not whole."""
    size = headers.get("content-length", "")
    kind = headers.get("content-type", "")
    note = {"cut": f"\n[only the first {len(body)} bytes{f' of {size}' if size else ''} are shown]",
            "broken": "\n[the connection broke off before the end]"}.get(matter, "")  # fmt: skip
    text = _text(body, kind, whole=not matter)
    if text is None:
        return f"[a binary body of {size or len(body)} bytes, {kind or 'of no said type'}]"
    return (text or "[no body]") + note


def _text(body: bytes, kind: str, *, whole: bool) -> str | None:
    """The text of a body; None when it is none."""
    if b"\0" in body:
        return None
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        if not whole and error.start >= len(body) - 3:  # cut within a letter
            return body[: error.start].decode("utf-8")
    charset = re.search(r"charset=\"?([A-Za-z0-9._-]{1,40})", kind)
    if charset is None and not kind.startswith("text/"):
        return None
    try:
        return body.decode(charset[1] if charset else "latin-1", "replace")
    except LookupError:
        return body.decode("latin-1")
