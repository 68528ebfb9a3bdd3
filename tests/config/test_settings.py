"""Settings: order of precedence, origins, and mistakes that are never silent."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from toka.config.diagnostics import Finding
from toka.config.fields import keys_of
from toka.config.options import OPTIONS, TABLES, URL_FORMS
from toka.config.parts import ResourceLimits
from toka.config.secret import Secret
from toka.config.settings import ExecutionConfig, Settings, load_settings
from toka.core.capability import Capability
from toka.core.limits import Limits
from toka.core.operator import CallRule, OperatorPolicy
from toka.errors import ConfigError


class Place:
    """A working directory and a home with a configuration."""

    def __init__(self, root: Path) -> None:
        self.cwd = root / "project"
        self.config = root / "home/.config/toka/config.toml"
        self.cwd.mkdir()
        self.config.parent.mkdir(parents=True)
        self.environment = {"HOME": str(root / "home")}

    def project(self, text: str) -> Place:
        (self.cwd / "toka.toml").write_text(text)
        return self

    def personal(self, text: str) -> Place:
        self.config.write_text(text)
        return self

    def load(self, flags: dict[str, object] | None = None, **environment: str) -> Settings:
        return load_settings(self.cwd, self.environment | environment, flags)

    def findings(self, **environment: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.load(**environment)
        assert caught.value.exit_code == 3
        return [f"{f.code} {f.text}" for f in caught.value.findings]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_everything_has_a_default(place: Place) -> None:
    settings = place.load()
    assert settings.execution == ExecutionConfig()
    assert (settings.model, settings.base_url, settings.allow_unsandboxed) == ("auto", None, False)
    assert settings.state == Path(place.environment["HOME"]) / ".local/state/toka"
    assert dict(settings.origins) == {}
    assert settings.findings == ()
    assert {origin for _, _, origin in settings.shown()} == {"default"}


def test_defaults_of_the_table_and_of_the_class_agree() -> None:
    listed = {o.field: o.default for o in OPTIONS if o.key.startswith("execution.")}
    assert listed == {f.name: f.default for f in fields(ExecutionConfig)}
    for option in OPTIONS:
        if not option.key.startswith("execution."):
            assert option.field in {f.name for f in fields(Settings)}
        assert option.help.endswith(".")
    assert len({o.variable for o in OPTIONS}) == len(OPTIONS)
    assert all(text.endswith(".") for text in TABLES.values())


def test_each_place_goes_before_the_next(place: Place) -> None:
    assert place.personal('model = "a:personal"').load().model == "a:personal"
    assert place.project('model = "a:project"').load().model == "a:project"
    assert place.load(TOKA_MODEL="a:variable").model == "a:variable"
    settings = place.load({"model": "a:flag"}, TOKA_MODEL="a:variable")
    assert settings.model == "a:flag"
    assert settings.origins["model"] == "flag"


def test_origins_name_the_place(place: Place) -> None:
    place.personal("[execution]\ntask_retries = 1\nmax_turns = 9\n").project("[execution]\ntask_retries = 4\n")
    settings = place.load(TOKA_GRACE="3s")
    assert (settings.execution.task_retries, settings.execution.max_turns, settings.execution.grace_s) == (4, 9, 3.0)
    assert dict(settings.origins) == {
        "execution.task_retries": "toka.toml",
        "execution.max_turns": str(place.config),
        "execution.grace": "TOKA_GRACE",
    }
    assert ("execution.grace", "3.0", "TOKA_GRACE") in settings.shown()


def test_units_are_read_everywhere(place: Place) -> None:
    place.project('[execution]\ntask_timeout = "1h30m"\noutput_bytes = "2MB"\nworkstream_timeout = "none"\n')
    execution = place.load(TOKA_COMMAND_TIMEOUT="90s").execution
    assert (execution.task_timeout_s, execution.output_bytes) == (5400.0, 2 * 1024**2)
    assert (execution.workstream_timeout_s, execution.command_timeout_s) == (None, 90.0)


def test_the_state_directory(place: Place) -> None:
    assert place.load(XDG_STATE_HOME="/var/x").state == Path("/var/x/toka")
    assert place.load(XDG_STATE_HOME="relative").state == Path(place.environment["HOME"]) / ".local/state/toka"
    assert place.load(TOKA_STATE="/var/y").state == Path("/var/y")
    assert place.load({"state": "here"}).state == place.cwd / "here"
    assert load_settings(place.cwd, {}).state == place.cwd / ".toka"


def test_the_personal_file_follows_xdg(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other/toka/config.toml"
    other.parent.mkdir(parents=True)
    other.write_text('model = "a:other"\n')
    assert place.load(XDG_CONFIG_HOME=str(tmp_path / "other")).model == "a:other"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("modl = 'x'", "TK2010", 'unknown setting "modl"'),
        ("[execution]\ntask_retris = 1", "TK2010", 'unknown setting "execution.task_retris"'),
        ("[exection]\nx = 1", "TK2010", 'unknown setting "exection"'),
        ("execution = 3", "TK2011", "execution is a table"),
        ("[[execution]]\nx = 1", "TK2011", "execution is a table"),
        ("execution.grace.x = 1", "TK2011", "a table is not accepted"),
        ("x = " + "9" * 5000, "TK1001", "too many digits"),
        ("model = 1979-05-27", "TK2011", "a date or time is not accepted"),
        ("[execution]\noutput_bytes = '5GB'", "TK2011", '"5GB" is not between 1KB and 1GB'),
        ("[execution]\nworkstream_timeout = 1", "TK2011", 'or "none"'),
        ("base_url = 'http://[::1'", "TK2011", "write http://HOST:PORT"),
        ("base_url = 'https://example.org?key=sk-1234'", "TK2011", "without user, password, query"),
        ("base_url = 'http://127.0.0.1:sk-1234'", "TK2011", "write http://HOST:PORT"),
        ("keys = 3", "TK2011", "keys is a table"),
        ("[execution]\ntask_retries = -1", "TK2011", "execution.task_retries"),
        ("[execution]\ntask_retries = true", "TK2011", "execution.task_retries"),
        ("[execution]\ntask_timeout = 30", "TK2011", "execution.task_timeout"),
        ("[execution]\nmax_concurrent_agents = 0", "TK2011", "between 1 and"),
        ("model = ''", "TK2011", "model"),
        ("allow_unsandboxed = 'yes'", "TK2011", "allow_unsandboxed"),
        ("base_url = 'http://example.org'", "TK2011", "https"),
        ("base_url = 'https://user:sk-1234@example.org'", "TK2011", "base_url"),
        ("a = [", "TK1001", "not valid TOML"),
        ("a = 1\na = 2", "TK1001", "not valid TOML"),
        ("x = " + "[" * 5000, "TK1005", "nested too deep"),
        ("[keys]\nOPENAI_API_KEY = 'sk-1234'", "TK2012", "reference"),
        ("[limits.team]\nmax_cost = '$1'", "TK2011", "unknown scope"),
        ("[limits.run]\nmax_cots = '$1'", "TK2011", "unknown key"),
        ("[limits.run]\nmax_cost = 'one'", "TK2011", "max_cost"),
        ("[limits.run]\nmax_tokens = true", "TK2011", "true is not a quantity"),
        ("[pricing]\n'a:b' = 3", "TK2011", "3 is no table"),
        ("[pricing.'a:b']\ninput = 1", "TK2011", "needs input and output"),
        ("[pricing.ab]\ninput = 1\noutput = 2", "TK2011", "PROVIDER:MODEL"),
        ("[pricing.'a:b']\ninput = -1\noutput = 2", "TK2011", "dollars"),
        ("[pricing.'a:b']\ninput = nan\noutput = 2", "TK2011", "dollars"),
        ("[capabilities.git-access]\nfilesystem-read = {}", "TK2011", "cannot be redefined"),
        ("[capabilities.deploy]\ntelepathy = {}", "TK2011", 'nobody defines "telepathy"'),
        ("[capabilities]\ndeploy = [true]", "TK2011", "holds their names"),
        ("[capabilities]\ndeploy = []", "TK2011", "no capability is named"),
        ("[capabilities.deploy]\nnetwork-access = {ports = [true]}", "TK2011", "ports is a list of texts"),
        ("[capabilities.deploy]\nfilesystem-read = {paths = ['../x']}", "TK2011", "leaves the workspace"),
        ("[capabilities]\ndeploy = 3", "TK2011", "3 is no table of capabilities"),
        ("[capabilities.'a b']\ngit-access = {}", "TK2011", "cannot be a name"),
        ("[channels.x]\nwebhook = 'http://x.org'", "TK2011", "https"),
        ("[channels.x]\n", "TK2011", "file or a webhook"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(text: str, code: str, words: str, place: Place) -> None:
    (found,) = place.personal(text + "\n").findings()
    assert found.startswith(code)
    assert words in found
    assert str(place.config) in found
    assert "sk-1234" not in found


ODD = (
    "1", "-1", "0", "true", "1.5", "nan", "-inf", "1e300", "99999999999999999999999", "'x'", "''", "'1e400'", "'nan'",
    "'999999999999999999'", "'5000TB'", "'3000000000s'", "'\\u0000'", "[]", "[1]", "{}", "{x = 1}", "1979-05-27",
    "07:32:00", "1979-05-27T07:32:00Z", f"'{'x' * 2_000}'",
)  # fmt: skip
"""A value of each kind that TOML has, and some beyond every range."""
PYTHONS_OWN = re.compile(
    r"datetime|\bTrue\b|\bFalse\b|\bNone\b|Error\b|[\[{]['\"0-9]|\de\+|most inf|Invalid|NFKC|literal|codec|x{70}"
)
"""What Python says, and what our messages do not."""


def said_of(error: ConfigError) -> str:
    """All text of findings but an example."""
    text = "\n".join(f"{f.message}\n{f.label}\n{f.help or ''}" for f in error.findings if isinstance(f, Finding))
    return text.replace('{paths = ["docs"]}', "")


@pytest.mark.parametrize("key", [o.key for o in OPTIONS])
def test_no_kind_of_value_brings_out_pythons_own_words(key: str, place: Place) -> None:
    table, _, name = key.rpartition(".")
    refused = 0
    for value in ODD:
        place.personal((f"[{table}]\n" if table else "") + f"{name} = {value}\n")
        try:
            place.load()
        except ConfigError as e:
            refused += 1
            (found,) = e.findings
            assert found.text.partition("]: ")[2].startswith(f"{key}: ")
            assert not PYTHONS_OWN.search(said_of(e)), value
            assert len(said_of(e)) < 250
    assert refused > len(ODD) / 2


TABLES_OF_NAMES = (
    "[limits]\nrun = {0}", *(f"[limits.run]\n{key} = {{0}}" for key in keys_of(ResourceLimits)),
    "[pricing]\n'a:b' = {0}", "[pricing.'a:b']\noutput = 1\ninput = {0}", "[capabilities]\nmine = {0}",
    "[capabilities]\nmine = [{0}]", "[capabilities.mine]\nfilesystem-read = {0}",
    "[capabilities.mine]\nfilesystem-read = {{paths = {0}}}", "[capabilities.mine]\nnetwork-access = {{ports = {0}}}",
    "[channels]\nx = {0}", "[channels.x]\nfile = {0}", "[channels.x]\nwebhook = {0}", "[keys]\nX = {0}",
    *(f"{table} = {{0}}" for table in TABLES),
)  # fmt: skip


@pytest.mark.parametrize("text", TABLES_OF_NAMES)
def test_no_table_brings_out_pythons_own_words(text: str, place: Place) -> None:
    refused = 0
    for value in ODD:
        place.personal(text.format(value) + "\n")
        try:
            place.load()
        except ConfigError as e:
            refused += 1
            assert not PYTHONS_OWN.search(said_of(e)), value
            for found in e.findings:
                assert isinstance(found, Finding)
                named = re.findall(r'"([^"]*)"', found.message)
                assert found.help not in [f'did you mean "{name}"?' for name in named]
    assert refused > len(ODD) / 3


@pytest.mark.parametrize("variable", [o.variable for o in OPTIONS])
def test_no_variable_brings_out_pythons_own_words(variable: str, place: Place) -> None:
    for text in ("x", "", "-1", "0", "1e9", "nan", "7 fortnights", "true", "\0", "\x1b]0;", "x" * 3_000):
        try:
            place.load(**{variable: text})
        except ConfigError as e:
            (found,) = e.findings
            assert found.text.startswith(f"environment: error[TK2011]: {variable}: ")
            assert not PYTHONS_OWN.search(said_of(e)), text
            assert found.text.isprintable()


@pytest.mark.parametrize("key", [o.key for o in OPTIONS])
def test_no_flag_brings_out_pythons_own_words(key: str, place: Place) -> None:
    for value in (True, 5.5, -1, "x", [], object, "a\tb"):
        try:
            place.load({key: value})
        except ConfigError as e:
            (found,) = e.findings
            assert found.text.startswith(f"command line: error[TK2011]: {key}: ")
            assert not PYTHONS_OWN.search(said_of(e)), value


@pytest.mark.parametrize(
    "url",
    ["http://[::1", "http://127.0.0.1:x", "http://127.0.0.1:99999", "http://127.0.0.1:0", "https://\u2100.org", "h",
     "https://h?key=s3cret", "https://h#s3cret", "https://s3cret@h", "https://u:s3cret@h", "https://h h", "ftp://h"],
)  # fmt: skip
def test_what_is_no_address_is_told_without_repeating_it(url: str, place: Place) -> None:
    (found,) = place.findings(TOKA_BASE_URL=url)
    assert found.endswith(f"TOKA_BASE_URL: {URL_FORMS}")


def test_all_wrong_limits_of_a_scope_are_reported(place: Place) -> None:
    found = place.personal("[limits.run]\nmax_cost = 'one'\nmax_tokens = true\nmax_memory = 1\n").findings()
    assert [re.search(r"limits\.run: (\w+):", f)[1] for f in found] == ["max_cost", "max_memory", "max_tokens"]  # type: ignore[index]


def test_all_mistakes_are_reported_in_one_pass(place: Place) -> None:
    found = place.personal("[execution]\ntask_retries = -1\nx = 1\n").project("modl = 1\n").findings(TOKA_MAX_TURNS="0")
    assert sorted(f.split()[0] for f in found) == ["TK2010", "TK2010", "TK2011", "TK2011"]


def test_a_wrong_value_is_an_error_even_where_another_place_decides(place: Place) -> None:
    place.personal("[execution]\ntask_retries = -1\n")
    assert place.findings(TOKA_TASK_RETRIES="1")


def test_syntax_errors_have_a_line(place: Place) -> None:
    (found,) = place.project("model = 'x'\n\nbase = = 2\n").findings()
    assert "toka.toml:3:8" in found


def test_misspelled_variables_are_warnings(place: Place) -> None:
    settings = place.load(TOKA_MODLE="x", TOKA_API_KEY="secret-value")
    (found,) = settings.findings
    assert (found.code, found.severity, found.help) == ("TK2010", "warning", "did you mean TOKA_MODEL?")


@pytest.mark.parametrize(
    "text",
    ["allow_unsandboxed = true", "base_url = 'https://example.org/v1'", "state = '/etc'", "[keys]\nA = '${env:B}'",
     "base_url = 'https://localhost:1@example.org'", "base_url = 'https://127.0.0.1.example.org'",
     "base_url = 'https://localhost.example.org:443/x'"],
)  # fmt: skip
def test_files_that_came_with_the_work_cannot_weaken_anything(text: str, place: Place) -> None:
    (found,) = place.project(text + "\n").findings()
    assert "working directory" in found


def test_a_server_on_this_machine_may_be_set_by_the_project(place: Place) -> None:
    assert place.project("base_url = 'http://127.0.0.1:8080/v1'\n").load().base_url == "http://127.0.0.1:8080/v1"
    assert place.project("base_url = 'http://[::1]:8080'\n").load().base_url == "http://[::1]:8080"


def test_tables(place: Place) -> None:
    place.personal("""
[keys]
OPENAI_API_KEY = "${file:/run/secrets/openai}"
[limits.run]
max_cost = "$5"
[limits.day]
max_tokens = "2M"
[pricing."server:small"]
input = 0.1
output = 0.4
cache_read = 0.01
[capabilities]
reading = ["filesystem-read"]
[capabilities.deploy]
command-execution = {programs = ["kubectl"]}
network-access = {hosts = ["api.example.org"], ports = [443]}
[channels.parser]
file = "report.jsonl"
[channels.team]
webhook = "${env:HOOK}"
[policy]
deny = ["network-access: *.internal.example", "run_command(git push*)"]
ask = ["reading"]
""").project("[limits.run]\nmax_cost = '$1'\n")
    settings = place.load()
    assert dict(settings.keys) == {"OPENAI_API_KEY": Secret("file", "/run/secrets/openai")}
    assert settings.run_limits == Limits(cost_usd=1.0)
    assert settings.day_limits == Limits(tokens=2_000_000)
    assert settings.pricing["server:small"].cache_read == 0.01
    assert settings.capabilities["reading"] == (Capability("filesystem-read"),)
    assert settings.capabilities["deploy"] == (
        Capability("command-execution", programs=("kubectl",)),
        Capability("network-access", hosts=("api.example.org",), ports=("443",)),
    )
    assert settings.channels["parser"].file == "report.jsonl"
    assert settings.channels["team"].webhook == Secret("env", "HOOK")
    assert settings.policy == OperatorPolicy(
        None,
        (Capability("network-access", hosts=("*.internal.example",)), CallRule("run_command", "git push*")),
        (Capability("filesystem-read"),),
    )
    rows = {key: (value, origin) for key, value, origin in settings.shown()}
    assert rows["keys.OPENAI_API_KEY"] == ("${file:/run/secrets/openai}", str(place.config))
    assert rows["limits.run"][1] == "toka.toml"
    assert rows["capabilities.reading"][0] == "filesystem-read"


def test_a_pipe_instead_of_a_settings_file_is_not_waited_for(place: Place) -> None:
    (place.cwd / "toka.toml").mkdir()
    (found,) = place.findings()
    assert found.startswith("TK1013")


def test_a_project_can_only_add_rules(place: Place) -> None:
    place.personal(
        '[policy]\nallow = ["filesystem-write: src, docs", "command-execution"]\ndeny = ["command-execution: rm"]\n'
    ).project('[policy]\nallow = ["filesystem-write: docs, tests", "network-access"]\ndeny = []\n')
    policy = place.load().policy
    write, read = (Capability(f"filesystem-{w}", paths=("docs",)) for w in ("write", "read"))
    assert policy.allow == (read, write)
    assert policy.deny == (Capability("command-execution", programs=("rm",)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[policy]\nforbid = []", "unknown setting"),
        ("[policy]\ndeny = [5]", "no text"),
        ("[policy]\ndeny = ['telepathy']", "nobody defines telepathy"),
        ("[policy]\nallow = ['run_command(ls*)']", "what is allowed are capabilities"),
        ("policy = 5", "policy is a table"),
    ],
)
def test_a_rule_that_cannot_be_read_stops_everything(place: Place, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        place.personal(text).load()
