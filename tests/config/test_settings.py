"""Settings: order of precedence, origins, and mistakes that are never silent."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from toka.config.options import OPTIONS, TABLES
from toka.config.secret import Secret
from toka.config.settings import ExecutionConfig, Settings, load_settings
from toka.core.capability import Capability
from toka.core.limits import Limits
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
    place.project('[execution]\ntask_timeout = "1h30m"\noutput_bytes = "2MB"\nagent_timeout = "none"\n')
    execution = place.load(TOKA_COMMAND_TIMEOUT="90s").execution
    assert (execution.task_timeout_s, execution.output_bytes) == (5400.0, 2 * 1024**2)
    assert (execution.agent_timeout_s, execution.command_timeout_s) == (None, 90.0)


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
        ("execution = 3", "TK2010", 'unknown setting "execution"'),
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
        ("[pricing.'a:b']\ninput = 1", "TK2011", "needs input and output"),
        ("[pricing.ab]\ninput = 1\noutput = 2", "TK2011", "PROVIDER:MODEL"),
        ("[pricing.'a:b']\ninput = -1\noutput = 2", "TK2011", "dollars"),
        ("[pricing.'a:b']\ninput = nan\noutput = 2", "TK2011", "dollars"),
        ("[capabilities.git-access]\nfilesystem-read = {}", "TK2011", "cannot be redefined"),
        ("[capabilities.deploy]\ntelepathy = {}", "TK2011", "nobody defines telepathy"),
        ("[capabilities.deploy]\nfilesystem-read = {paths = ['../x']}", "TK2011", "leaves the workspace"),
        ("[capabilities]\ndeploy = 3", "TK2011", "table of capabilities"),
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
rules = []
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
    assert dict(settings.policy) == {"rules": []}
    rows = {key: (value, origin) for key, value, origin in settings.shown()}
    assert rows["keys.OPENAI_API_KEY"] == ("${file:/run/secrets/openai}", str(place.config))
    assert rows["limits.run"][1] == "toka.toml"
    assert rows["capabilities.reading"][0] == "filesystem-read"


def test_a_pipe_instead_of_a_settings_file_is_not_waited_for(place: Place) -> None:
    (place.cwd / "toka.toml").mkdir()
    (found,) = place.findings()
    assert found.startswith("TK1013")
