"""`toolchains` of `[tools]`: what is accepted, and that whatever is not is told at its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from toka.config.settings import Settings, load_settings
from toka.errors import ConfigError

HEAD = '[tools]\n# toolchains = ["{0}"]\ntoolchains = [\n  "/opt/first",  # not "{0}"\n  "{0}",\n]\n'


def settings(folder: Path, personal: str = "", project: str = "", home: str = "/srv/people/ann") -> Settings:
    (folder / "config/toka").mkdir(parents=True, exist_ok=True)
    (folder / "config/toka/config.toml").write_text(personal)
    (folder / "toka.toml").write_text(project)
    environment = {"XDG_CONFIG_HOME": str(folder / "config"), "HOME": home, "XDG_STATE_HOME": "/srv/state"}
    return load_settings(folder, environment)


def refused(folder: Path, text: str, **more: str) -> tuple[str, str]:
    """The one finding: as it is rendered, and its help."""
    with pytest.raises(ConfigError) as caught:
        settings(folder, text, **more)
    (finding,) = caught.value.findings
    return finding.render(), finding.help or ""


def test_folders_keep_their_order_and_a_home_is_put_in(tmp_path: Path) -> None:
    text = '[tools]\ntoolchains = ["~/.rustup/toolchains/stable/", "/opt//go/./", "/opt/go", "/usr/local/node"]\n'
    found = settings(tmp_path, text)
    home = "/srv/people/ann/.rustup/toolchains/stable"
    assert [t.path for t in found.tools.toolchains] == [home, "/opt/go", "/usr/local/node"]
    first = found.tools.toolchains[0]
    assert (first.position.line, first.position.column, first.length) == (2, 15, 30)
    rows = {key: (value, origin) for key, value, origin in found.shown()}
    value, origin = rows["tools.toolchains"]
    assert value == f"{home}, /opt/go, /usr/local/node"
    assert origin.endswith("config.toml")
    assert [t.path for t in settings(tmp_path, '[tools]\ntoolchains = "/opt/go"\n').tools.toolchains] == ["/opt/go"]


BAD = {
    "go": "is not absolute", "./go": "is not absolute", "~ann/go": "is not absolute", "": "is no folder",
    "/opt/../etc": "no plain path", "/opt/a:b": "no plain path", "/opt/a\u200eb": "no plain path",
    "/": "the whole machine", "//": "the whole machine", "/usr": "already", "/usr/local/": "already",
    **dict.fromkeys((
        "/etc", "/etc/alternatives", "/proc", "/proc/1/root", "/sys", "/dev/shm", "/run/user", "/var", "/var/lib/go",
        "/tmp/go", "/bin", "/lib64", "/boot", "/workspace/go", "/toka",
    ), "no sandbox shows of this machine"),
    "/root": "home folder", "/home": "home folder", "/home/bob": "home folder", "~": "home folder", "~/": "home folder",
    "/srv/people": "home folder", "/srv": "home folder",
    "~/.ssh": "place of keys", "~/.ssh/deep": "place of keys", "~/.aws": "place of keys", "~/.config": "place of keys",
    "~/.cargo": "place of keys", "~/.local": "place of keys", "/root/.gnupg": "place of keys",
    "/opt/old/.kube": "place of keys", "/srv/state": "Toka keeps", "/srv/state/toka/x": "Toka keeps",
}  # fmt: skip


@pytest.mark.parametrize(("path", "says"), BAD.items())
def test_what_cannot_be_a_toolchain_is_told_at_its_line(tmp_path: Path, path: str, says: str) -> None:
    shown, hint = refused(tmp_path, HEAD.format(path))
    assert says in shown
    assert "config.toml:5:3" in shown
    assert f'5 |   "{path}",' in shown.replace("\N{REPLACEMENT CHARACTER}", "\u200e")
    assert hint


@pytest.mark.parametrize("value", ["3", "{a = 1}", "true", "[1979-05-27]", "[[]]"])
def test_what_is_no_text_is_told_at_the_key(tmp_path: Path, value: str) -> None:
    shown, _ = refused(tmp_path, f"[tools]\ntoolchains = {value}\n")
    assert "is no folder" in shown
    assert "config.toml:2:1" in shown


def test_a_home_that_nobody_knows_is_put_in_nowhere(tmp_path: Path) -> None:
    assert "is not absolute" in refused(tmp_path, HEAD.format("~/go"), home="")[0]


def test_files_of_keys_are_kept_out(tmp_path: Path) -> None:
    text = "[tools]\ntoolchains = ['/opt/kit']\n[credentials.\"api.example.org\"]\nvalue = '${file:/opt/kit/etc/key}'\n"
    assert '"/opt/kit" meets "/opt/kit/etc/key"' in refused(tmp_path, text)[0]
    text = "keys = {MY_KEY = '${file:/opt/kit/key}'}\n[tools]\ntoolchains = ['/opt/kit']\n"
    assert '"/opt/kit" meets "/opt/kit/key"' in refused(tmp_path, text)[0]


def test_a_state_directory_of_a_flag_counts(tmp_path: Path) -> None:
    settings(tmp_path, HEAD.format("/opt/kit"))
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": "/srv/people/ann"}
    with pytest.raises(ConfigError, match="/opt/kit/state"):
        load_settings(tmp_path, environment, {"state": "/opt/kit/state"})


def test_too_many_are_refused(tmp_path: Path) -> None:
    listed = ", ".join(f'"/opt/kit{n}"' for n in range(33))
    assert "more than 32 folders" in refused(tmp_path, f"[tools]\ntoolchains = [{listed}]\n")[0]


def test_a_project_may_not_name_any(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, project='[tools]\ntoolchains = ["/opt/kit"]\n')
    (finding,) = caught.value.findings
    assert "cannot be set by a toka.toml in the working directory" in finding.text
