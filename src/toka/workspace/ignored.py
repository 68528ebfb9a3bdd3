"""Which files the workspace's own .gitignore files leave out. Standard library only: it runs inside the sandbox.

git answers, with the store as its repository and the workspace as its working tree: it reads .gitignore files (never
through a link) and the list of tracked files, and no setting of the workspace's own repository. Nothing is executed.
"""

from __future__ import annotations

import os
import subprocess

from toka.workspace.store import VARIABLES, Refused

MOST = 16 * 1024
"""Bytes of names in one question; a pipe holds four times as much."""
FIELDS = 4
"""Of each answer: where the pattern stands, its line, the pattern, the path."""


class Ignored:
    """A running `git check-ignore` for one walk.

    Args:
        git: the program.
        workspace: its folder.
    """

    def __init__(self, git: str, workspace: str) -> None:
        index = os.path.join(workspace, ".git/index")
        plain = {name: value for name, value in VARIABLES.items() if name != "GIT_LITERAL_PATHSPECS"}  # not known here
        env = {
            **plain, "GIT_DIR": os.getcwd(), "GIT_WORK_TREE": workspace,
            "GIT_INDEX_FILE": index if os.path.isfile(index) else os.path.abspath("no-index"),
        }  # fmt: skip
        argv = [git, "check-ignore", "--stdin", "-z", "--verbose", "--non-matching"]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, cwd=workspace
        )

    def __call__(self, folder: str, names: list[str]) -> set[str]:
        """The names in a folder (its path, empty or ending with a slash) that are ignored; never `.git`."""
        if folder.startswith(".git/"):
            return set()
        out: set[str] = set()
        asked: list[str] = []
        size = 0
        for name in [name for name in names if name != ".git"]:
            asked.append(name)
            size += len(folder) + len(name) * 4 + 4
            if size > MOST:
                out |= self._ask(folder, asked)
                asked, size = [], 0
        return out | self._ask(folder, asked)

    def _ask(self, folder: str, names: list[str]) -> set[str]:
        """Asks about a few names: as many as a pipe holds, so that neither side waits for the other."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(b"".join(b"./" + os.fsencode(folder + name) + b"\0" for name in names))
            stdin.flush()
        except OSError:  # it ended; reading tells
            pass
        data, count = bytearray(), 0
        while count < FIELDS * len(names):
            block = os.read(stdout.fileno(), 65536)
            if not block:
                raise Refused("ignored", "git does not tell which files are ignored; take the checkpoint with them")
            data += block
            count += block.count(b"\0")
        patterns = bytes(data).split(b"\0")[2::FIELDS]
        return {name for name, pattern in zip(names, patterns) if pattern and not pattern.startswith(b"!")}

    def close(self) -> None:
        """Ends git."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # it ended before it read all
                pass
        self._process.wait()
