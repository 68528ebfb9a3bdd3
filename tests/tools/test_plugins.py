"""Tools of other distributions: real packages in folders, of which one runs in real sandboxes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from toka.config.settings import Settings
from toka.config.settings_tools import Pin, ToolRules
from toka.core.capability import Capability, CapabilityError, Grant
from toka.core.effect import Effect
from toka.errors import ConfigError, SandboxError, UsageError
from toka.tools.builtin import Toolbox, needed_names
from toka.tools.files import ReadFile
from toka.tools.hosted import HostedTool
from toka.tools.plugins import Plugins, find_plugins, load_tools, toolbox
from toka.tools.script import ScriptTool, Unfit, read_tool
from toka.tools.tool import ToolContext, ToolResult, spec_of, validate
from tools.conftest import Room

COUNT = """
import json, sys
args = json.loads(sys.argv[1])
with open(args["path"]) as file:
    lines = sum(1 for _ in file)
print(json.dumps({"text": f"{lines} lines", "data": {"lines": lines}}))
"""
MANIFEST: Mapping[str, Any] = {
    "description": "Counts the lines of a file.",
    "parameters": {
        "type": "object",
        "properties": {"path": {"type": "string", "minLength": 1, "description": "The file."}},
        "required": ["path"],
        "additionalProperties": False,
    },
    "needs": {"filesystem-read": {"paths": ["{path}"]}},
    "effect": "pure",
}
HOSTED = """
class Greet:
    name, description, effect = "greet", "Greets.", "pure"
    parameters = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}

    def needs(self, args):
        return ()

    async def call(self, args, ctx):
        from toka.tools.tool import ToolResult
        return ToolResult("hello")
"""


def install(
    site: Path, name: str = "acme-tools", points: str = "count_lines = acme_tools.count", version: str = "1.0",
    init: str = "raise RuntimeError('nobody imports this')\n",
    **files: str | Mapping[str, Any],
) -> Path:  # fmt: skip
    """Puts a package into a folder as an installer does: its files, METADATA, entry points and RECORD."""
    package = name.replace("-", "_")
    info = f"{package}-{version}.dist-info"
    contents = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/entry_points.txt": f"[toka.tools]\n{points}\n",
        f"{package}/__init__.py": init,
        **{
            f"{package}/{file.replace('__', '.')}": text if isinstance(text, str) else json.dumps(text)
            for file, text in files.items()
        },
    }
    rows: list[str] = []
    for path, text in contents.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        rows.append(f"{path},sha256={digest},{len(text.encode())}")
    record = site / info / "RECORD"
    record.write_text("\n".join([*rows, f"{info}/RECORD,,", ""]))
    return record


def found(site: Path, rules: ToolRules, taken: tuple[str, ...] = ("read_file",)) -> Plugins:
    return find_plugins(rules, taken, lambda: distributions(path=[str(site)]))


def pinned(record: Path, name: str = "acme-tools", version: str = "1.0") -> ToolRules:
    return ToolRules(host={name: Pin(version, hashlib.sha256(record.read_bytes()).hexdigest())})


ALLOWED = ToolRules(("acme-tools",))
COUNTER: Mapping[str, Any] = {"count__py": COUNT, "count__json": MANIFEST}


# --- what is found, and what is refused


def test_nothing_is_loaded_that_no_rule_allows(tmp_path: Path) -> None:
    install(tmp_path, **COUNTER)
    plugins = found(tmp_path, ToolRules())
    assert (plugins.scripts, plugins.host, plugins.faults) == ((), (), ())
    (note,) = plugins.notes
    assert note.startswith("acme-tools 1.0 offers the tool 'count_lines'; it is not loaded: [tools] allow = ")


def test_an_allowed_script_is_read_and_not_imported(tmp_path: Path) -> None:
    install(tmp_path, **COUNTER)
    plugins = found(tmp_path, ALLOWED)
    assert (plugins.notes, plugins.faults) == ((), ())
    (tool,) = plugins.scripts
    assert (tool.name, tool.effect, tool.script) == ("count_lines", Effect.PURE, COUNT)
    assert spec_of(tool).description == "Counts the lines of a file."
    assert tool.needs({"path": "./src//a.py"}) == (Capability("filesystem-read", paths=("src/a.py",)),)
    with pytest.raises(CapabilityError, match="not relative"):
        tool.needs({"path": "/etc/passwd"})
    assert isinstance(validate(tool, '{"path": "a", "more": 1}'), str)


@pytest.mark.parametrize(
    ("points", "files", "says"),
    [
        ("read_file = acme_tools.count", COUNTER, "offers the tool 'read_file', a name that another tool has"),
        ("Count-Lines = acme_tools.count", COUNTER, "a name that no tool can have"),
        ("count_lines = acme tools", COUNTER, "names no module"),
        ("count_lines = acme_tools.other", COUNTER, "acme_tools/other.py is not among its files"),
        ("count_lines = acme_tools.count", {"count__py": COUNT}, "acme_tools/count.json is not among its files"),
        ("count_lines = acme_tools.count", {**COUNTER, "count__json": "{"}, "no JSON object"),
        ("count_lines = acme_tools.count", {**COUNTER, "count__json": {**MANIFEST, "more": 1}}, "'more' is none of"),
        ("count_lines = acme_tools.count", {**COUNTER, "count__json": {**MANIFEST, "effect": "checkable"}}, "effect"),
        ("count_lines = acme_tools.count", {**COUNTER, "count__json": {**MANIFEST, "description": ""}}, "description"),
        ("count_lines = acme_tools.count", {**COUNTER, "count__py": "#" * 65_537}, "65537 bytes; 65536 can be used"),
        ("count_lines = acme_tools.count", {**COUNTER, "count__py": "a\0b"}, "holds a NUL"),
        ("", COUNTER, "[tools] names acme-tools, which offers no tools"),
    ],
)  # fmt: skip
def test_what_is_allowed_and_unusable_is_a_fault_that_says_why(
    tmp_path: Path, points: str, files: Mapping[str, Any], says: str
) -> None:
    install(tmp_path, points=points, **files)
    plugins = found(tmp_path, ALLOWED)
    assert plugins.scripts == ()
    (fault,) = plugins.faults
    assert says in fault


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parameters": {"type": "object"}}, "additionalProperties"),
        ({"parameters": {**MANIFEST["parameters"], "$ref": "https://x.org/s"}}, "other schemas"),
        ({"parameters": {**MANIFEST["parameters"], "minProperties": "x"}}, "no JSON Schema"),
        ({"needs": {"filesystem-read": {"paths": ["{other}"]}}}, "{other} is no required text"),
        ({"needs": {"filesystem-read": ["a"]}}, "takes lists of texts"),
        ({"needs": {"nobody-knows-it": {}}}, "nobody defines nobody-knows-it"),
        ({"needs": {"network-access": {"hosts": ["a b"]}}}, "needs: "),
        ({"needs": []}, "needs is no object"),
    ],
)
def test_a_description_that_is_none_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Unfit) as refused:
        read_tool("x", COUNT, json.dumps({**MANIFEST, **change}))
    assert says in str(refused.value)


def test_files_that_were_changed_after_they_were_installed_are_refused(tmp_path: Path) -> None:
    install(tmp_path, **COUNTER)
    (tmp_path / "acme_tools/count.py").write_text(COUNT + "#")
    (fault,) = found(tmp_path, ALLOWED).faults
    assert "acme_tools/count.py is not what was installed" in fault


def test_metadata_that_cannot_be_read_stops_nobody_else(tmp_path: Path) -> None:
    record = install(tmp_path, "bad-tools", "greet = bad_tools.greet")
    record.write_text(record.read_text() + "\n")
    (tmp_path / "void-1.0.dist-info").mkdir()
    install(tmp_path, **COUNTER)
    plugins = found(tmp_path, ALLOWED)
    assert ([tool.name for tool in plugins.scripts], plugins.faults) == (["count_lines"], ())
    (fault,) = found(tmp_path, ToolRules(("bad-tools",))).faults
    assert fault.startswith("bad-tools offers what cannot be read: ")


def test_two_distributions_cannot_have_one_tool(tmp_path: Path) -> None:
    install(tmp_path, **COUNTER)
    install(tmp_path, "beta-tools", "count_lines = beta_tools.count", **COUNTER)
    plugins = found(tmp_path, ToolRules(("acme-tools", "beta-tools")))
    assert len(plugins.scripts) == 1
    (fault,) = plugins.faults
    assert "offers the tool 'count_lines', a name that another tool has" in fault


def test_every_fault_is_one_finding_of_one_error(tmp_path: Path) -> None:
    install(tmp_path, points="read_file = acme_tools.count", **COUNTER)
    rules = ToolRules(("acme-tools", "gone"))
    with pytest.raises(ConfigError, match="tools that cannot be used; nothing was started") as refused:
        load_tools(rules, {"read_file"}, lambda: distributions(path=[str(tmp_path)]), "config.toml")
    clash, gone = (finding.text for finding in refused.value.findings)
    assert clash.startswith("config.toml: error[TK2011]: tools: acme-tools 1.0 offers the tool 'read_file', a name th")
    assert gone.endswith("[tools] names gone, which is not installed")


def test_without_rules_nothing_is_looked_for() -> None:
    def never() -> Any:
        raise AssertionError("looked")

    assert load_tools(ToolRules(), (), never) == ()
    assert toolbox(Settings(Path("/state")), installed=never) == Toolbox()


def test_a_program_cannot_bring_a_second_tool_of_one_name() -> None:
    with pytest.raises(UsageError, match="another tool that comes with Toka is called read_file"):
        Toolbox((ReadFile(),))


# --- what is offered


@pytest.mark.parametrize(
    ("needs", "grant", "offered"),
    [
        ({}, (), True),
        ({"filesystem-read": {"paths": ["{path}"]}}, (), False),
        ({"filesystem-read": {"paths": ["{path}"]}}, (Capability("filesystem-read", paths=("docs",)),), True),
        ({"filesystem-read": {"paths": ["src"]}}, (Capability("filesystem-read", paths=("docs",)),), False),
        ({"network-access": {"hosts": ["{path}"]}}, (Capability("network-access", hosts=("x.org",)),), True),
        ({"network-access": {"hosts": ["y.org"]}}, (Capability("network-access", hosts=("x.org",)),), False),
        ({"filesystem-read": {}, "git-access": {}}, (Capability("filesystem-read"),), False),
    ],
)
def test_a_tool_is_offered_where_a_call_can_be_granted(
    needs: dict[str, Any], grant: tuple[Capability, ...], *, offered: bool
) -> None:
    tool = read_tool("count_lines", COUNT, json.dumps({**MANIFEST, "needs": needs}))
    box = Toolbox((tool,))
    assert (tool in box.offered(Grant(grant))) is offered
    assert box.find("count_lines") is tool
    assert needed_names(tool) == tuple(needs)


# --- inside


def script(text: str, **change: Any) -> ScriptTool:
    return read_tool("count_lines", text, json.dumps({**MANIFEST, **change}))


async def test_a_script_works_inside_and_nowhere_else(room: Room, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    (workspace / "json.py").write_text("raise RuntimeError('the workspace has a say')\n")
    ctx = room(reads=("src", "json.py"))
    good = await script(COUNT).call({"path": "src/a.py"}, ctx)
    assert good == ToolResult("3 lines", data={"lines": 3})
    for path in (str(tmp_path / "secret"), str(Path.home()), "/etc/shadow", "README.md", "../secret"):
        bad = await script(COUNT).call({"path": path}, ctx)
        assert bad.failed, path
        assert "Error" in bad.text
        assert "secret\n" not in bad.text
    for attempt in (
        "open('src/a.py', 'w')",
        "__import__('socket').create_connection(('1.1.1.1', 53), 1)",
        "__import__('subprocess').run(['/bin/ls'])",
        "__import__('os').kill(1, 9) or 1 / 0",
    ):
        bad = await script(f'{attempt}\nprint(\'{{"text": "did it"}}\')').call({"path": "a"}, ctx)
        assert (bad.failed, "did it" in bad.text) == (True, False), attempt
    assert (workspace / "src/a.py").read_text() == "one = 1\ntwo = 2\nthree = 3\n"


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("raise ValueError('no')", "raised", "the tool count_lines failed: exit code 1\nTraceback"),
        ("import os; os.abort()", "raised", "ended by signal 6"),
        ("while True: pass", "timeout", "the tool count_lines failed: killed after 1 seconds"),
        ("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)", "timeout", "killed after 1 s"),
        ("while True: print('x' * 65536)", "flood", "far too much output"),
        ("", "no-result", "its last line is no result"),
        ("print('fine')", "no-result", "its last line is no result\nfine"),
        ("print('[1]')", "no-result", "no result"),
        ("print('{}')", "no-result", "no result"),
        ("print('{\"text\": 3}')", "no-result", "no result"),
        ('print(\'{"text": "a", "failed": "no"}\')', "no-result", "no result"),
        ('print(\'{"text": "a", "data": []}\')', "no-result", "no result"),
        ('print(\'{"text": "\\\\ud800"}\')', "no-result", "no result"),
        ("print('[' * 100000)", "no-result", "no result"),
    ],
)
async def test_whatever_a_script_does_wrong_is_one_failure_with_its_kind(
    room: Room, text: str, kind: str, says: str
) -> None:
    plain = room(reads=(".",))
    ctx = ToolContext(plain.hands, plain.key, 1 if kind in ("timeout",) else 20, 1_000, plain.agent)
    result = await script(text).call({"path": "a"}, ctx)
    assert (result.failed, result.data) == (True, {"tool_error": kind})
    assert says in result.text
    assert len(result.text) < 2_000


async def test_a_failure_that_a_script_reports_is_a_result(room: Room) -> None:
    told = 'print("a note"); print(\'{"text": "not there", "failed": true}\')'
    assert await script(told).call({"path": "a"}, room(reads=(".",))) == ToolResult("not there", failed=True)


# --- on the host


def hosted(site: Path, text: str, name: str) -> Path:
    """A package with a module of its own name, so that tests do not share what was imported."""
    return install(site, name, f"greet = {name.replace('-', '_')}:Greet", init=text)


def test_what_is_not_pinned_is_not_imported(tmp_path: Path) -> None:
    record = hosted(tmp_path, "raise SystemExit(9)", "acme-tools")
    for rules in (ToolRules(), ALLOWED):
        plugins = found(tmp_path, rules)
        assert plugins.host == ()
        (note,) = plugins.notes
        assert f"sha256:{hashlib.sha256(record.read_bytes()).hexdigest()}" in note
        assert "would trust it with everything" in note
    assert [p.name for p in found(tmp_path, pinned(record)).host] == ["greet"]


@pytest.mark.parametrize("change", ["version", "record", "file", "gone"])
def test_a_pin_is_of_exactly_one_form(tmp_path: Path, change: str) -> None:
    record = hosted(tmp_path, HOSTED, "acme-tools")
    rules = pinned(record, version="2.0" if change == "version" else "1.0")
    module = tmp_path / "acme_tools/__init__.py"
    if change == "record":
        record.write_text(record.read_text() + "more,,\n")
    elif change == "file":
        module.write_text(HOSTED + "#")
    elif change == "gone":
        module.unlink()
    plugins = found(tmp_path, rules)
    assert plugins.host == ()
    (fault,) = plugins.faults
    assert "is not what [tools] host names" in fault


async def test_a_pinned_tool_works_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ctx: ToolContext
) -> None:
    rules = pinned(hosted(tmp_path, HOSTED, "good-tools"), "good-tools")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tool,) = load_tools(rules, (), lambda: distributions(path=[str(tmp_path)]))
    assert (tool.name, tool.needs({})) == ("greet", ())
    assert await tool.call({}, ctx) == ToolResult("hello")


@pytest.mark.parametrize(
    ("number", "text", "says"),
    [
        (0, "raise RuntimeError('broken')", "RuntimeError: broken"),
        (1, "def (", "SyntaxError"),
        (2, "x = 1", "AttributeError"),
        (3, HOSTED.replace('"greet"', '"other"'), "calls itself 'other'"),
        (4, HOSTED.replace('"pure"', '"checkable"'), "effect is one of"),
        (5, HOSTED.replace('"Greets."', "3"), "no description"),
        (6, HOSTED.replace('"additionalProperties": False', '"additionalProperties": True'), "additionalProperties"),
        (7, HOSTED.replace("def needs(self, args)", "needs = 3\n    def more(self)"), "needs and call are methods"),
    ],
)
def test_a_pinned_module_that_brings_no_tool_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str, says: str
) -> None:
    name = f"bad{number}-tools"
    rules = pinned(hosted(tmp_path, text, name), name)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        load_tools(rules, (), lambda: distributions(path=[str(tmp_path)]))
    (finding,) = refused.value.findings
    assert "the tool 'greet' of [tools] host cannot be used: " in finding.text
    assert says in finding.text


class Bad(ReadFile):
    """A tool that does what a test says."""

    def __init__(self, does: Any) -> None:
        self.does = does

    def needs(self, args: dict[str, Any]) -> Any:
        raise self.does

    async def call(self, args: dict[str, Any], ctx: ToolContext) -> Any:
        if isinstance(self.does, BaseException):
            raise self.does
        return self.does


async def test_what_a_tool_in_this_process_raises_is_a_failure_with_its_kind(ctx: ToolContext) -> None:
    for does, kind, says in (
        (RuntimeError("broken"), "raised", "the tool read_file failed: RuntimeError: broken"),
        (KeyError(), "raised", "the tool read_file failed: KeyError"),
        ("text", "no-result", "the tool read_file failed: it gave str, no ToolResult"),
        (None, "no-result", "it gave NoneType"),
    ):
        result = await HostedTool(Bad(does)).call({}, ctx)
        assert (result.failed, result.data) == (True, {"tool_error": kind})
        assert says in result.text
    for passed in (SandboxError("gone"), asyncio.CancelledError()):
        with pytest.raises(type(passed)):
            await HostedTool(Bad(passed)).call({}, ctx)
    with pytest.raises(CapabilityError, match="cannot say what it needs: RuntimeError: broken"):
        HostedTool(Bad(RuntimeError("broken"))).needs({})
