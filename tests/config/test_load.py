"""Files and directories are read in one order, and nothing that is no regular file is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toka.config.agent import AgentConfig
from toka.config.load import label_of, read_source, spec_files
from toka.errors import ConfigError

SPEC = "metadata: {{name: {}}}\nspec: {{}}\ntasks: [x]\n"


def write(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SPEC.format(name))
    return path


def names(directory: Path) -> list[str]:
    return [str(p.relative_to(directory)) for p in spec_files(directory)[0]]


def test_specs_are_found_below_in_order(tmp_path: Path) -> None:
    for name in ("b.yaml", "a/z.yml", "a.yaml", "a/b/c.yaml", ".hidden.yaml", ".git/x.yaml", "x.txt", "y.yaml~"):
        write(tmp_path / name, "n")
    assert names(tmp_path) == ["a/b/c.yaml", "a/z.yml", "a.yaml", "b.yaml"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    write(tmp_path / "in/a.yaml", "n")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/self.yaml").symlink_to("self.yaml")
    files, notes = spec_files(tmp_path / "in")
    assert files == (tmp_path / "in/a.yaml",)
    assert ["self.yaml" in f.message for f in notes.findings] == [True]


def test_a_link_out_of_the_directory_is_skipped_and_reported(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.yaml", "secret")
    write(tmp_path / "in/a.yaml", "a")
    (tmp_path / "in/link.yaml").symlink_to(secret)
    (tmp_path / "in/near.yaml").symlink_to("a.yaml")
    files, notes = spec_files(tmp_path / "in")
    assert [f.name for f in files] == ["a.yaml", "near.yaml"]
    assert [(f.code, f.severity) for f in notes.findings] == [("TK1013", "warning")]


def test_special_files_in_a_directory_are_findings(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "a")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="no regular file"):
        AgentConfig.load_directory(tmp_path)


def test_a_directory_called_like_a_spec_is_entered(tmp_path: Path) -> None:
    write(tmp_path / "dir.yaml/a.yaml", "a")
    assert names(tmp_path) == ["dir.yaml/a.yaml"]


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
def test_a_directory_without_specs_is_an_error(make: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if make == "empty":
        path.mkdir()
    if make == "file":
        path.write_text("")
    with pytest.raises(ConfigError) as caught:
        AgentConfig.load_directory(path)
    assert caught.value.findings[0].code == ("TK1012" if make == "empty" else "TK1013")


def test_directories_nested_too_deep_are_reported(tmp_path: Path) -> None:
    write(tmp_path.joinpath(*"abcdefghijklmnopqrst") / "x.yaml", "x")
    files, notes = spec_files(tmp_path)
    assert files == ()
    assert [f.code for f in notes.findings] == ["TK1005"]


def test_an_unreadable_file_is_a_finding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(ConfigError, match="cannot be read"):
        AgentConfig.load_from_file(path)


def test_a_byte_order_mark_is_skipped_with_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SPEC.format("a").encode())
    config = AgentConfig.load_from_file(path)
    assert [(f.code, f.severity) for f in config.findings] == [("TK1002", "note")]
    assert config.position("metadata", "name").column == 18


def test_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(SPEC.format("a").replace("\n", "\r\n").encode() + b"reporting: {frequency: sometimes}\r\n")
    (found,) = AgentConfig.load_from_file(path).findings
    assert (found.line, found.source) == (4, "reporting: {frequency: sometimes}")


def test_a_file_of_exactly_1_mb_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    spec = SPEC.format("a").encode()
    path.write_bytes(spec + b"#" * (1024 * 1024 - len(spec)))
    assert AgentConfig.load_from_file(path).name == "a"
    path.write_bytes(path.read_bytes() + b"#")
    assert [f.code for f in read_source(path).findings] == ["TK1004"]


def test_names_of_files_are_shown_whatever_bytes_they_hold() -> None:
    assert label_of(Path("a\x1b[2J.yaml")) == "a␛[2J.yaml"
    assert label_of(Path(os.fsdecode(b"a\xff.yaml"))).encode()
