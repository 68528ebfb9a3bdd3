"""Models that answer from a script: for tests, demos and dry runs. Costs no money and needs no network.

A script is stateless: the reply depends only on the agent, the task, the number of the call within the task, and the
messages. So a run that was killed and resumed gets the same answers.

The file behind `scripted:FILE` is YAML or JSON:

```yaml
script: 1                                  # version of this format
agents:
  fixer:                                   # an agent's name, of an instance fixer[1] or fixer; "*" = any agent
    fix-sum:                               # a task's id; "*" = any task
      - calls: [{read_file: {path: src/sum.py}}]           # reply to the first model call of the task
      - say: "Trying."                                     # text, alone or beside calls
        calls: [{edit_file: {path: src/sum.py, old: "-", new: "+"}}]
      - report: {status: succeeded, summary: "done"}       # short for calls: [{report: {...}}]
    "repair-1":
      - raw_calls: [{name: edit_file, arguments: "{not json"}]   # arguments as text, possibly malformed
        usage: {input: 100, output: 20}    # tokens; also cache_read, cache_write
        cost: 0.02                         # US dollars
        delay: 50ms                        # before the reply
        finish: length                     # stop, tool_calls, length, refused; default: by the reply's calls
      - error: unavailable                 # refused, malformed, or a kind of toka.llm.failure.KINDS
        times: 2                           # only the first 2 attempts of this call; default: all of them
        say: "Now it works."               # the reply after them
      - say: "Again."
        repeat: true                       # only on the last reply of a list: it answers all further calls too
default:                                   # when no agent and task above match
  - report: {status: blocked, summary: "not scripted"}
    repeat: true
```

The first match counts: this agent and task, this agent and `*`, `*` and this task, `*` and `*`, `default`. An instance
`fixer[1]` takes what is there for `fixer` before what is there for `*`. Replies run out on purpose: a call without a
reply is a ModelError of kind `script` that names agent, task, call and file. Without `usage`, tokens are a quarter of
the characters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from toka.core.clock import Clock, SystemClock
from toka.core.message import Message, ToolCall, Usage
from toka.llm.failure import KINDS, CallError, Kind, failed
from toka.llm.model import Finish, ModelReply, ModelRequest
from toka.llm.script import ANY, Script, ScriptedReply, script_of
from toka.llm.script_file import read_script

CHARACTERS_PER_TOKEN: Final = 4

Answer = ScriptedReply | Message | str
"""What a Python function may answer: a full reply, a message, or just text."""

ERROR_NAMES: Final[Mapping[str, Kind]] = {"unavailable": "server", "refused": "invalid_request"}
"""Names a script may use besides the kinds themselves."""


class ScriptedModel:
    """A Model that answers from a script or a function.

    ```python
    ScriptedModel({"agents": {"fixer": {"*": [{"report": {"status": "succeeded", "summary": "ok"}}]}}})
    ScriptedModel(lambda request: "Hello " + request.agent)
    ```
    """

    def __init__(
        self,
        source: Callable[[ModelRequest], Answer] | Mapping[str, Any] | Script,
        *,
        name: str = "scripted:python",
        clock: Clock | None = None,
    ) -> None:
        """Makes a model.

        Args:
            source: a function of the request (it must not depend on anything else, or a resumed run will differ); or a
                mapping in the form of a script file, `script: 1` may be left out; or a script read before.
            name: its model string, for messages.
            clock: time for `delay`; None: the system's.

        Raises:
            ConfigError: the mapping is not a script.
        """
        self._name = name
        self._answer: Callable[[ModelRequest], ScriptedReply]
        if callable(source):
            self._answer = lambda request: _reply(source(request))
        else:
            script = source if isinstance(source, Script) else script_of(source, name)
            self._answer = lambda request: self._scripted(script, request)
        self._clock: Clock = clock or SystemClock()

    @staticmethod
    def from_file(path: Path, *, clock: Clock | None = None) -> ScriptedModel:
        """The model behind `scripted:FILE`.

        Raises:
            ConfigError: the file is not a script; carries every finding.
            UsageError: the file cannot be read.
        """
        return ScriptedModel(read_script(path), name=f"scripted:{path}", clock=clock)

    @property
    def name(self) -> str:
        """See Model."""
        return self._name

    async def request(self, request: ModelRequest) -> ModelReply:
        """See Model. The failures are those that the script asks for, and `script` when it has no reply."""
        answer = self._answer(request)
        if answer.delay_s > 0:
            await self._clock.sleep(answer.delay_s)
        if answer.error is not None and (answer.times is None or request.attempt <= answer.times):
            kind = _kind(answer.error)
            usage = Usage(*answer.usage, calls=1) if answer.usage else None
            raise failed(kind, f"{self._name}: {answer.error}, as scripted for {_place(request)}", usage=usage)
        message = _message(answer, request)
        finish: Finish = answer.finish or ("tool_calls" if message.calls else "stop")
        usage = Usage(*answer.usage, calls=1) if answer.usage else _usage(request, message)
        return ModelReply(message, usage, self._name, answer.cost_usd, finish)

    async def aclose(self) -> None:
        """See Model. There is nothing to release."""

    def _scripted(self, script: Script, request: ModelRequest) -> ScriptedReply:
        replies = script.replies(request.agent, request.task)
        if replies is None:
            raise self._missing(request, f"no replies for this agent and task, nor for {ANY!r}, and no default")
        if request.call <= len(replies):
            return replies[request.call - 1]
        if replies and replies[-1].repeat:
            return replies[-1]
        raise self._missing(request, f"the list has {len(replies)} replies; add one, or `repeat: true` to the last")

    def _missing(self, request: ModelRequest, why: str) -> CallError:
        return failed("script", f"{self._name} has no reply for {_place(request)}: {why}")


def _reply(answer: Answer) -> ScriptedReply:
    if isinstance(answer, str):
        return ScriptedReply(say=answer)
    return ScriptedReply(message=answer) if isinstance(answer, Message) else answer


def _kind(error: str) -> Kind:
    return ERROR_NAMES.get(error) or next(kind for kind in KINDS if kind == error)


def _place(request: ModelRequest) -> str:
    return f"agent {request.agent!r}, task {request.task!r}, call {request.call}"


def _message(answer: ScriptedReply, request: ModelRequest) -> Message:
    if answer.message is not None:
        return answer.message
    calls = tuple(
        ToolCall(f"call-{request.call}-{index}", name, arguments)
        for index, (name, arguments) in enumerate(answer.calls, 1)
    )
    return Message("assistant", text=answer.say, calls=calls)


def _usage(request: ModelRequest, message: Message) -> Usage:
    read = sum(len(m.text) + sum(len(c.name) + len(c.arguments) for c in m.calls) for m in request.messages)
    read += sum(len(t.name) + len(t.description) + len(json.dumps(dict(t.parameters))) for t in request.tools)
    written = len(message.text) + sum(len(c.name) + len(c.arguments) for c in message.calls)
    return Usage(
        input_tokens=max(1, read // CHARACTERS_PER_TOKEN),
        output_tokens=max(1, written // CHARACTERS_PER_TOKEN),
        calls=1,
    )
