"""What the checkpoint process does when it is asked. Standard library only: it runs inside the sandbox."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import stat
import time

from toka.workspace.ignored import Ignored
from toka.workspace.packs import BLOB, COMMIT, TREE
from toka.workspace.putback import Planner, Putter, open_up
from toka.workspace.store import ID, PLAN, Refused, commit_text, read_commit, read_text, write_file
from toka.workspace.trees import FILE, FOLDER, Branch, below, entries_of, load, tree_of, within
from toka.workspace.walk import UNREADABLE, Walk
from toka.workspace.walk import Folder as Seen

TYPE_CHECKING = False  # importing typing would cost every start 3 ms
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from toka.workspace.store import Store
    from toka.workspace.walk import Signature

OBJECTS = ".git/objects"
"""Not recorded: git only ever adds to it, and it may be larger than all the rest."""
ROOT_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
LONGEST = 64 << 20
"""Bytes of a diff."""
LISTED = 200
"""Paths that an answer names of those that were not recorded or not put back."""


class View:
    """What was last recorded of one scope, and the checkpoint that holds it."""

    def __init__(self, top: bytes, commit: str, root: Seen | None) -> None:
        self.top = top
        self.commit = commit
        self.root = root


class Operations:
    """Answers requests; see the methods for their arguments.

    Args:
        store: the private store.
        config: `workspace`, its path here; `git`; `excluded`, paths in the workspace that are not of it.
    """

    def __init__(self, store: Store, config: dict[str, Any]) -> None:
        self._store = store
        self._git: str = config["git"]
        self._workspace: str = config["workspace"]
        self._excluded = frozenset(config["excluded"])
        self._views: dict[str, View] = {}
        self._contents: dict[Signature, bytes] = {}
        self._table: dict[str, Callable[[dict[str, Any]], tuple[dict[str, Any], bytes]]] = {
            "take": self.take, "plan": self.plan, "apply": self.apply, "open": self.open, "diff": self.diff,
            "history": self.history, "forget": self.forget, "done": self.done,
        }  # fmt: skip

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The answer to one request: a JSON object, and bytes.

        Raises:
            Refused: it cannot be done.
        """
        with self._store.shared() if request["op"] != "forget" else contextlib.nullcontext(False) as fresh:
            if fresh:  # objects were cleaned away: nothing that is remembered may be trusted to be there
                self._distrust()
            return self._table[request["op"]](request)

    def _has_objects(self) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(f"{self._workspace}/.git").st_mode)
        except OSError:
            return False

    def _distrust(self) -> None:
        known = self._store.known
        self._contents = {sign: oid for sign, oid in self._contents.items() if oid in known}
        for view in self._views.values():
            view.root = None
        kept = {commit for _, commit in self._store.references()}
        self._views = {key: view for key, view in self._views.items() if view.commit in kept}

    def seen(self) -> dict[str, Any]:
        """What a later process can use."""
        contents: dict[Signature, bytes] = {}
        for view in self._views.values():
            if view.root is not None:
                _gather(view.root, contents)
        last = {key: (view.top, view.commit) for key, view in self._views.items()}
        return {"contents": contents or self._contents, "last": last}

    def recall(self, seen: dict[str, Any]) -> None:
        """The inverse of `seen`; only what is in the store counts."""
        with self._store.shared():
            self._contents = dict(seen["contents"])
            self._views = {key: View(top, commit, None) for key, (top, commit) in seen["last"].items()}
            self._distrust()

    # ---- taking

    def take(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Records the workspace.

        Args:
            request: `note` with run, agent, task, step; `scope`, a list of paths; `ignored`, whether ignored files are
                recorded, too; `objects`, whether the workspace's own git objects are.
        """
        return self._take(request, request["note"])[1], b""

    def _take(self, request: dict[str, Any], note: dict[str, Any]) -> tuple[Walk, dict[str, Any]]:
        key = json.dumps([request["scope"], request["ignored"], request["objects"]])
        view = self._views.get(key)
        with self._store.writing():
            walk, root = self._walk(request, None if view is None else view.root)
            top = self._top(request, walk, root)
            created = view is None or view.top != top
            if created:
                now = time.time()
                text = commit_text(top, {**note, "time": f"{now:.6f}"}, int(now))
                commit = self._store.add(COMMIT, text).hex()
            else:
                assert view is not None
                commit = view.commit
        self._store.refer(note["run"], commit)
        self._views[key] = View(top, commit, root)
        self._contents.update(walk.fresh)
        uncovered = sorted(walk.uncovered.items())
        return walk, {
            "id": commit, "created": created, "files": walk.files, "changed": walk.changed if created else 0,
            "uncovered": uncovered[:LISTED], "uncovered_count": len(uncovered), "packs": self._store.packs(),
        }  # fmt: skip

    def _walk(self, request: dict[str, Any], old: Seen | None) -> tuple[Walk, Seen]:
        excluded = self._excluded if request["objects"] else self._excluded | {OBJECTS}
        ignored = None if request["ignored"] else Ignored(self._git, self._workspace)
        walk = Walk(self._store, self._contents, excluded, ignored)
        fd = os.open(self._workspace, ROOT_FLAGS)
        try:
            return walk, walk.whole(fd, old, below(request["scope"]))
        finally:
            os.close(fd)
            if ignored is not None:
                ignored.close()

    def _top(self, request: dict[str, Any], walk: Walk, root: Seen) -> bytes:
        about = {name: request[name] for name in ("scope", "ignored", "objects")}
        about |= {"omitted": walk.omitted, "uncovered": walk.uncovered, "left_out": sorted(walk.left_out)}
        blob = self._store.add(BLOB, json.dumps(about, sort_keys=True).encode())
        entries = [(FILE, b"about", blob), (FOLDER, b"files", root.files), (FOLDER, b"meta", root.meta)]
        return self._store.add(TREE, tree_of(entries))

    # ---- putting back

    def _read(self, commit: str) -> tuple[dict[str, str], dict[str, Any], dict[bytes, str]]:
        """The note of a checkpoint, what it says about itself, and the objects it consists of."""
        if not ID.fullmatch(commit):
            raise Refused("not-found", f"{commit!r} is not the name of a checkpoint")
        if bytes.fromhex(commit) not in self._store.known:
            raise Refused("not-found", f"there is no checkpoint {commit}: it was never taken here, or is pruned")
        tree, note = read_commit(self._store.read(commit, "commit"))
        parts = {name: oid for _, name, oid in entries_of(self._store.read(tree, "tree"))}
        return note, json.loads(self._store.read(parts[b"about"], "blob")), parts

    def plan(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Records what is there, and writes down what has to be done to go back.

        Args:
            request: `id` of the checkpoint; `scope`, paths, or None for the checkpoint's own; `note` for what is there.

        Returns:
            `kept`: the checkpoint of what is there. Then either `open`, the name of a list of paths that must be made
            readable first; or `plan`, the name of what has to be done, empty when nothing has, with `changed` and
            `left`. With both `writable`, the folders in which it has to be done.
        """
        _, about, parts = self._read(request["id"])
        scope: list[str] = about["scope"] if request["scope"] is None else request["scope"]
        if outside := [path for path in scope if not within(path, about["scope"])]:
            raise Refused("scope", f"checkpoint {request['id'][:12]} does not hold {', '.join(outside)}")
        target = load(self._store.read, parts[b"files"], parts[b"meta"], below(scope))
        # A repository that is to go must be kept whole; one that stays keeps its objects anyway.
        gone = not isinstance(target.entries.get(".git"), Branch) and self._has_objects()
        objects = about["objects"] or gone
        own = {"scope": scope, "ignored": about["ignored"], "objects": objects}
        walk, kept = self._take(own, {**request["note"], "kept": request["id"]})
        held = set(about["uncovered"]) | set(about["left_out"])
        closed = [p for p, why in walk.uncovered.items() if why == UNREADABLE and not within(p, held)]
        if closed and request["opening"]:
            around = [path for path in scope if any(within(p, (path,)) for p in closed)]
            return {"kept": kept["id"], "open": _written(closed), "writable": around}, b""
        root = self._views[json.dumps([own["scope"], own["ignored"], own["objects"]])].root
        assert root is not None
        planner = Planner(held, walk.uncovered, [*walk.left_out, *walk.placeholders, *self._excluded])
        plan = planner.folder(target, root)
        if OBJECTS in about["omitted"] and ".git" in target.entries and ".git" not in root.entries:
            planner.left[OBJECTS] = "was not recorded"
        answer: dict[str, Any] = {"kept": kept["id"], "changed": planner.changed, "plan": "", "left": planner.left}
        if plan is not None:
            answer |= {"plan": _written(plan), "writable": _writable(scope, target, root)}
        return answer, b""

    def apply(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Does what a plan says; `raced` and `left` name what was not done."""
        putter = Putter(self._store.copy, self._store.read)
        fd = os.open(self._workspace, ROOT_FLAGS)
        try:
            putter.folder(fd, json.loads(read_text(request["plan"])))
            ctypes.CDLL(None).syncfs(fd)
        finally:
            os.close(fd)
        return {"raced": putter.raced, "left": putter.left}, b""

    def open(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Makes paths readable to their owner; those that are somebody else's stay as they are."""
        fd = os.open(self._workspace, ROOT_FLAGS)
        try:
            for path in json.loads(read_text(request["plan"])):
                try:
                    open_up(fd, path)
                except OSError:  # it is told when it still cannot be read
                    continue
        finally:
            os.close(fd)
        return {}, b""

    def done(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Forgets a plan."""
        os.unlink(request["plan"])
        return {}, b""

    # ---- looking

    def diff(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Compares two checkpoints, or one with what is there now. The text leaves out the files of git itself.

        Args:
            request: `old`; `new`, None for the workspace; `paths`, empty for all.
        """
        _, about, parts = self._read(request["old"])
        if request["new"] is None:
            with self._store.writing():
                view = self._views.get(json.dumps([about["scope"], about["ignored"], about["objects"]]))
                new = self._walk(about, None if view is None else view.root)[1].files.hex()
        else:
            new = self._read(request["new"])[2][b"files"]
        ends = (parts[b"files"], new, "--", *(path for path in request["paths"] if path != "."))
        common = ("--no-renames", "--no-ext-diff", "--no-textconv", "-r")
        raw = self._store.git("diff-tree", "--raw", "--no-abbrev", "-z", *common, *ends).split(b"\0")
        changes: list[list[str]] = []
        for head, path in zip(raw[::2], raw[1::2]):
            old_mode, new_mode, _, _, status = head.decode().lstrip(":").split(" ")
            changes.append([status[:1], os.fsdecode(path), old_mode, new_mode])
        shown = [f":(literal){path}" for path in ends[3:]] or [":(glob)**"]
        ends = (*ends[:3], *shown, ":(exclude,glob)**/.git/**")  # nobody reads an index
        magic = {"GIT_LITERAL_PATHSPECS": "0"}
        text = self._store.git("diff-tree", "-p", "--no-color", "--full-index", *common, *ends, also=magic)
        return {"changes": changes, "cut": len(text) > LONGEST}, text[:LONGEST]

    def history(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The notes of all checkpoints that are kept for a run (None: any), oldest first, each with its id."""
        found: list[dict[str, Any]] = []
        for run, commit in self._store.references(request["run"]):
            if bytes.fromhex(commit) in self._store.known:
                note, about, _ = self._read(commit)
                found.append({**note, "id": commit, "of": run, "scope": about["scope"]})
        found.sort(key=lambda note: float(note["time"]))
        return {"checkpoints": found}, b""

    def forget(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Drops the checkpoints of runs, and the objects that nobody needs then."""
        dropped, freed = self._store.forget(request["runs"])
        return {"dropped": dropped, "freed": freed}, b""


def _written(plan: object) -> str:
    """Writes down what is to be done for the process that does it, which can read the store; its name there."""
    name = f"{PLAN}{os.urandom(8).hex()}"
    write_file(name, json.dumps(plan).encode())
    return name


def _gather(folder: Seen, contents: dict[Signature, bytes]) -> None:
    """All contents of a folder by signature."""
    for entry in folder.entries.values():
        if isinstance(entry, Seen):
            _gather(entry, contents)
        elif entry[0][3] >= 0:
            contents[entry[0]] = entry[1]


def _writable(scope: list[str], target: Branch, now: Seen) -> list[str]:
    """The folders that must be writable: each path of the scope that is and was a folder, else the one around it."""
    found: set[str] = set()
    for path in scope:
        if path == ".":
            return ["."]
        then: Any = target
        here: Any = now
        depth = 0
        parts = path.split("/")
        for name in parts:
            then = then.entries.get(name) if then is not None else None
            here = here.entries.get(name) if here is not None else None
            if not hasattr(then, "entries") or not hasattr(here, "entries"):
                break
            depth += 1
        found.add("/".join(parts[:depth]) or ".")
    return sorted(p for p in found if not any(within(p, (q,)) for q in found - {p}))
