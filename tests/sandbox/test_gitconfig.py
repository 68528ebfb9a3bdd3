from __future__ import annotations

from pathlib import Path

from toka.sandbox.gitconfig import obeyed


def test_hooks_and_includes_below_the_workspace_are_found(tmp_path: Path) -> None:
    work, home = tmp_path / "work", tmp_path / "home"
    (work / ".git").mkdir(parents=True)
    home.mkdir()
    (work / ".git/config").write_text(
        '[core]\n\tbare = false\n\thooksPath = ".husky/_" ; a comment\n'
        f'[include]\n\tpath = ../.gitsettings\n[includeIf "gitdir:/x"] path={work}/conf/git # more\n'
        "[include]\n\tpath = ~/elsewhere\n[other]\n\tpath = no\n"
    )
    (home / ".gitconfig").write_text("[Core]\nHOOKSPATH=hooks\n[include]\npath = mine\n")
    assert obeyed(work, home) == {
        ".husky/_": "folder", ".gitsettings": "file", "conf/git": "file", "hooks": "folder",
    }  # fmt: skip


def test_what_leads_out_or_is_everything_or_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for text in ("[core]\nhooksPath=/etc/hooks\n", "[core]\nhooksPath=..\n", "[core]\nhooksPath=.\n", '[core\n=\n"\n'):
        (tmp_path / ".git/config").write_text(text)
        assert obeyed(tmp_path, tmp_path / "none") == {}
    (tmp_path / ".git/config").unlink()
    (tmp_path / ".git/config").mkdir()
    assert obeyed(tmp_path, tmp_path / "none") == {}
