from __future__ import annotations

from llm.conftest import TOOLS
from toka.core.message import Message, ToolCall, ToolSpec
from toka.llm.estimate import Bounds


def test_every_byte_of_a_request_counts() -> None:
    bounds = Bounds()
    message = Message("assistant", "ä" * 10, calls=(ToolCall("i", "n" * 7, "a" * 13),), opaque={"k": "v" * 50})
    assert bounds.input((message,), ()) >= 20 + 7 + 13 + 50
    assert bounds.output(message) >= 20 + 7 + 13 + 50


def test_the_bound_grows_by_what_is_added() -> None:
    bounds = Bounds()
    one = bounds.input((Message("user", "a" * 100),), TOOLS)
    assert bounds.input((Message("user", "a" * 100), Message("user", "b" * 1000)), TOOLS) >= one + 1000
    assert one > bounds.input((Message("user", "a" * 100),), ())


def test_lone_surrogates_do_not_break_it() -> None:
    assert Bounds().input((Message("tool", "\ud800"),), ()) >= 3


def test_tool_sets_are_measured_once_and_not_for_ever() -> None:
    bounds = Bounds()
    bounds.input((), TOOLS)
    bounds.input((), (*TOOLS,))
    assert len(bounds._tools) == 1, "another agent with the same tools"
    kept = [(ToolSpec(f"t{n}", "", {}),) for n in range(1000)]
    for tools in kept:
        bounds.input((), tools)
    assert len(bounds._tools) <= 256
