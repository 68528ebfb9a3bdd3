from __future__ import annotations

import pytest

from toka.core.capability import Capability, CapabilityError, Grant
from toka.core.effect import Effect
from toka.tools.shell import RunCommand, shell_syntax, split
from toka.tools.tool import ToolContext


def test_a_command_is_repeated_only_where_what_it_changed_is_put_back() -> None:
    assert RunCommand().effect is Effect.WORKSPACE


async def test_a_command_line_is_interpreted(ctx: ToolContext) -> None:
    result = await RunCommand().call({"command": "cat src/a.py | wc -l; echo $TOKA_IDEMPOTENCY_KEY"}, ctx)
    assert result.text.split() == ["3", "k" * 32]
    assert not result.failed
    assert result.data is not None
    assert (result.data["ended"], result.data["exit_code"]) == ("exited", 0)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("echo out; echo err >&2; exit 3", "out\nerr\n[exit code 3]"),
        ("printf x; exit 1", "x\n[exit code 1]"),
        ("kill -9 $$", "[ended by signal 9]"),
        ("sleep 5", "[killed after 0.2 seconds]"),
    ],
)
async def test_the_end_is_told(ctx: ToolContext, command: str, text: str) -> None:
    result = await RunCommand().call({"command": command}, ToolContext(ctx.hands, ctx.key, 0.2, 1000, ctx.agent))
    assert (result.text, result.failed) == (text, True)


async def test_silence_is_told(ctx: ToolContext) -> None:
    assert (await RunCommand().call({"command": "true"}, ctx)).text == "[no output]"


async def test_long_output_is_cut_in_the_middle(ctx: ToolContext) -> None:
    small = ToolContext(ctx.hands, ctx.key, 10, 20, ctx.agent)
    result = await RunCommand().call({"command": "seq 1 1000"}, small)
    assert result.text.startswith("1\n2\n3\n4\n5\n\n[... 3873 bytes are missing here ...]\n")
    assert result.text.endswith("999\n1000\n")


async def test_output_that_was_not_kept_is_told(ctx: ToolContext) -> None:
    result = await RunCommand().call({"command": "head -c 1048586 /dev/zero | tr '\\0' x"}, ctx)
    assert result.text.endswith("[... 10 more bytes of output were not kept]")


async def test_bytes_that_are_no_text_do_no_harm(ctx: ToolContext) -> None:
    assert (await RunCommand().call({"command": "printf '\\377\\376ok'"}, ctx)).text == "\ufffd\ufffdok"


def test_any_program_needs_the_whole_right() -> None:
    (need,) = RunCommand().needs({"command": "ls | wc"})
    assert need == Capability("command-execution")
    assert Grant((Capability("command-execution", programs=("ls", "wc")),)).covering(need) is None


def test_with_a_list_the_named_program_is_needed() -> None:
    tool = RunCommand(("git", "ls"))
    assert tool.needs({"command": "git log --format='%h $x'"}) == (Capability("command-execution", programs=("git",)),)


@pytest.mark.parametrize("command", ["/usr/bin/git log", "./x.sh", "", "  ", "'' x", "git 'open", "git \\", "A=1 git"])
def test_with_a_list_what_names_no_program_is_refused(command: str) -> None:
    with pytest.raises(CapabilityError):
        RunCommand(("git",)).needs({"command": command})


@pytest.mark.parametrize(
    "command",
    ["git log; ls", "git log && ls", "git log | cat", "git log > x", "git < x", "git `ls`", "git $(ls)", "git $HOME",
     'git "$HOME"', "git log &", "git log\nls", "(git)", "git *.py", "git a?", "git [ab]", "git {a,b}", "git ~/x",
     "git # x", "~/git", 'git "\\$a"', 'git "`ls`"', "git \\\\; ls"],
)  # fmt: skip
def test_with_a_list_shell_syntax_is_refused_by_name(command: str) -> None:
    assert shell_syntax(command)
    with pytest.raises(CapabilityError, match="no shell is one of them"):
        RunCommand(("git", "ls")).needs({"command": command})


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("git commit -m 'a; b | c $d'", ["git", "commit", "-m", "a; b | c $d"]),
        ('git commit -m "a; b* \\"c"', ["git", "commit", "-m", 'a; b* "c']),
        ("grep a\\;b x~y a#b", ["grep", "a;b", "x~y", "a#b"]),
        ("echo 'it'\"'\"'s'", ["echo", "it's"]),
        ("printf '\\n'", ["printf", "\\n"]),
    ],
)
def test_quoted_characters_are_plain(command: str, words: list[str]) -> None:
    assert split(command) == words


async def test_with_a_list_the_words_are_run_without_a_shell(ctx: ToolContext) -> None:
    result = await RunCommand(("echo",)).call({"command": "echo 'a; b' \"c d\""}, ctx)
    assert result.text == "a; b c d\n"
