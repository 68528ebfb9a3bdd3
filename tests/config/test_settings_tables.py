"""`[credentials]` and `[tools]`: what they hold, what is refused, and that no key is ever in the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from toka.config.secret import Secret
from toka.config.settings import Settings, load_settings
from toka.config.settings_tables import HostKey
from toka.config.settings_tools import Pin
from toka.errors import ConfigError

KEY = "ghx0123456789abcdef"
SHA = "0123456789abcdef" * 4


def settings(folder: Path, personal: str = "", project: str = "") -> Settings:
    (folder / "config/toka").mkdir(parents=True, exist_ok=True)
    (folder / "config/toka/config.toml").write_text(personal)
    (folder / "toka.toml").write_text(project)
    return load_settings(folder, {"XDG_CONFIG_HOME": str(folder / "config"), "HOME": str(folder), "GH": KEY})


def test_a_key_is_a_reference_with_defaults(tmp_path: Path) -> None:
    text = "[credentials.\"api.github.com\"]\nvalue = '${env:GH}'\n"
    text += "[credentials.\"api.example.org\"]\nvalue = '${file:/run/key}'\nheader = 'X-Api-Key'\nport = 8443\n"
    text += "[credentials.\"a.example.org\"]\nvalue = '${env:GH}'\nprefix = 'token '\n"
    found = settings(tmp_path, text)
    assert dict(found.credentials) == {
        "api.github.com": HostKey(Secret("env", "GH"), "Authorization", "Bearer ", 443),
        "api.example.org": HostKey(Secret("file", "/run/key"), "X-Api-Key", "", 8443),
        "a.example.org": HostKey(Secret("env", "GH"), "Authorization", "token ", 443),
    }
    rows = {key: (value, origin) for key, value, origin in found.shown()}
    value, origin = rows["credentials.api.github.com"]
    assert value.startswith("value = ${env:GH}, header = Authorization, prefix = Bearer ")
    assert origin.endswith("config.toml")
    assert KEY not in f"{found!r}{rows}"


@pytest.mark.parametrize(
    ("name", "table", "says"),
    [
        ("api.github.com", f"value = '{KEY}'", "value is a reference to a secret"),
        ("api.github.com", "", "value is a reference to a secret"),
        ("api.github.com", "value = '${file:key}'", "value is a reference to a secret"),
        ("api.github.com", "value = '${env:GH}'\nmore = 1", 'unknown key "more"'),
        ("api.github.com", "value = '${env:GH}'\nheader = 'a: b'", "header is the name of a header field"),
        ("api.github.com", "value = '${env:GH}'\nprefix = \"a\\r\\nb: \"", "prefix is a short piece of text"),
        ("api.github.com", "value = '${env:GH}'\nport = 0", "port is a TCP port"),
        ("api.github.com", "value = '${env:GH}'\nport = true", "port is a TCP port"),
        *((name, "value = '${env:GH}'", "not the name of one host")
          for name in ("*.github.com", "github", "127.0.0.1", "API.github.com", "api.github.com:443", "a b.org", "")),
    ],
)  # fmt: skip
def test_what_is_no_key_for_a_host_is_refused_without_being_repeated(
    tmp_path: Path, name: str, table: str, says: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(tmp_path, f'[credentials."{name}"]\n{table}\n')
    told = "\n".join(f.render() for f in refused.value.findings)
    assert says in told
    assert KEY not in told


@pytest.mark.parametrize(
    "table",
    [
        "[credentials.\"api.github.com\"]\nvalue = '${env:GH}'",
        "[tools]\nallow = ['acme-tools']",
        "[secrets]\ngithub = '${env:GH}'",
    ],
)
def test_only_a_persons_own_file_may_hold_them(tmp_path: Path, table: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(tmp_path, project=table)
    (finding,) = refused.value.findings
    assert "cannot be set by a toka.toml in the working directory" in finding.text


def test_secrets_are_references_by_name(tmp_path: Path) -> None:
    found = settings(tmp_path, "[secrets]\ngithub = '${env:GH}'\ndeploy-key = '${file:/run/key}'\n")
    assert dict(found.secrets) == {"github": Secret("env", "GH"), "deploy-key": Secret("file", "/run/key")}
    rows = {key: value for key, value, _ in found.shown()}
    assert rows["secrets.github"] == "${env:GH}"
    assert KEY not in f"{found!r}{rows}"


@pytest.mark.parametrize(
    ("line", "says"), [(f"github = '{KEY}'", "write ${env:GITHUB} or"), ("'a b' = '${env:GH}'", "the name of a secret")]
)
def test_what_is_no_secret_is_refused_without_being_repeated(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(tmp_path, f"[secrets]\n{line}\n")
    told = "\n".join(f.render() for f in refused.value.findings)
    assert says in told
    assert KEY not in told


def test_tools_by_name_and_by_pin(tmp_path: Path) -> None:
    found = settings(
        tmp_path, f"[tools]\nallow = ['Acme_Tools', 'acme-tools']\nhost = ['other.tools == 1.2 sha256:{SHA}']\n"
    )
    assert found.tools.allow == ("acme-tools",)
    assert dict(found.tools.host) == {"other-tools": Pin("1.2", SHA)}
    rows = {key: value for key, value, _ in found.shown()}
    assert (rows["tools.allow"], rows["tools.host"]) == ("acme-tools", f"other-tools==1.2 sha256:{SHA}")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("allow = ['../x']", "is no distribution"),
        ("allow = [3]", "is no distribution"),
        ("host = ['acme-tools']", 'write "NAME==VERSION sha256:HEX"'),
        (f"host = ['acme-tools==1.0 sha256:{SHA[:-1]}']", "is no distribution"),
        ("hosts = []", 'unknown setting "tools.hosts"'),
    ],
)
def test_what_names_no_distribution_is_refused(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(tmp_path, f"[tools]\n{line}\n")
    assert says in "\n".join(f.render() for f in refused.value.findings)
