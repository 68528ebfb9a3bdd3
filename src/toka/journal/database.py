"""The SQLite file: where it lies, its tables, how a connection is opened."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from toka.errors import JournalError, JournalGone, JournalUnavailable
from toka.journal.place import make, refuse_network

FILE: Final = "journal.db"
SCHEMA: Final = 1
WAL_S: Final = 10.0
"""How long opening waits for others that are opening a new file, in seconds."""

_DDL: Final = """
CREATE TABLE streams(
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, name TEXT NOT NULL,
  epoch INTEGER NOT NULL, head_seq INTEGER NOT NULL, head BLOB NOT NULL, UNIQUE(run, name));
CREATE TABLE events(
  id INTEGER PRIMARY KEY, stream INTEGER NOT NULL REFERENCES streams(id),
  seq INTEGER NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, hash BLOB NOT NULL);
CREATE UNIQUE INDEX events_by_stream ON events(stream, seq);
CREATE TABLE leases(
  run TEXT PRIMARY KEY, token INTEGER NOT NULL, host TEXT NOT NULL, boot TEXT NOT NULL, pidns TEXT NOT NULL,
  pid INTEGER NOT NULL, started INTEGER NOT NULL, taken REAL NOT NULL, until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE commands(
  id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, verb TEXT NOT NULL, agent TEXT NOT NULL,
  arguments TEXT NOT NULL, author TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX commands_by_run ON commands(run, id);
CREATE TABLE blobs(digest TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
"""


class OpenFile:
    """A database file that is open, to notice when it lies there no more.

    The system keeps a deleted file for those who have it open, and SQLite goes on writing into it without a word.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        """Remembers which file lies at `path` now. Raises JournalGone: none does."""
        self.path = path
        self._file: tuple[int, int] | None = None
        self._file = self._found()
        if self._file is None:
            raise self.gone()

    def check(self) -> None:
        """Raises JournalGone when the file does not lie there any more."""
        if self._found() != self._file:
            raise self.gone()

    def gone(self) -> JournalGone:
        """What to say when it is not there any more."""
        return JournalGone(
            f"the journal {self.path} is gone: its directory was deleted or moved while it was in use",
            hint="if it was moved, say where: --state DIR; if it was deleted, its runs are lost: start again",
        )

    def _found(self) -> tuple[int, int] | None:
        """Device and inode of the file that lies there; None when there is none."""
        try:
            found = self.path.stat()
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
                return None
            return self._file  # whoever may not look does not know better
        return found.st_dev, found.st_ino


def prepare(state: Path) -> Path:
    """Makes the state directory (0700) and the database file (0600) when they are missing; returns the file.

    Raises:
        JournalError: the directory or the file cannot be made or written, lies on another machine, or was written by
            a newer version; what is there is left as it is.
    """
    refuse_network(state)
    try:
        path = make(state, FILE)
    except OSError as e:
        hint = "choose another with --state DIR or TOKA_STATE, or mend its permissions"
        if os.access(state / FILE, os.R_OK):
            hint += "; to look at the runs that are there, copy it to where you may write"
        raise JournalUnavailable(f"cannot use the state directory {state}: {e.strerror or e}", hint=hint) from e
    _refuse_newer(path)
    connection = connect(path)
    try:
        _migrate(connection, path)
    finally:
        connection.close()
    return path


def connect(path: Path, *, readonly: bool = False, anywhere: bool = False) -> sqlite3.Connection:
    """Opens a connection in autocommit mode.

    Args:
        path: the database file.
        readonly: refuse writes.
        anywhere: the connection is used from another thread than this one, by one thread at a time.

    Raises:
        JournalError: the file is not a usable database.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=not anywhere)
        _to_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        if readonly:
            connection.execute("PRAGMA query_only=ON")
    except sqlite3.Error as e:
        known = failure(e, path)
        raise JournalUnavailable(known.message, hint=known.hint) from e
    return connection


def _to_wal(connection: sqlite3.Connection) -> None:
    """Switches the file to a write-ahead log. SQLite does not wait for others there, so this waits itself."""
    end = time.monotonic() + WAL_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as e:
            code = getattr(e, "sqlite_errorcode", 0) & 0xFF
            if code not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def failure(error: sqlite3.Error, path: Path) -> JournalError:
    """What went wrong with the database, in the words of whoever has to mend it."""
    text = str(error)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        hint = "free some space on that disk; nothing recorded is lost, and the run can be resumed"
    elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        hint = "another process holds the database; try again"
    elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        hint = "mend the permissions of the file and its directory, or choose another with --state DIR"
    elif code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        hint = "the file is damaged or is no journal; restore it from a backup or choose another --state DIR"
        return JournalUnavailable(f"journal {path}: {text}", hint=hint)  # to try again would change nothing
    else:
        hint = None
    return JournalError(f"journal {path}: {text}", hint=hint)


def _refuse_newer(path: Path) -> None:
    """Refuses a journal of a newer version before anything is changed in it.

    Only SQLite itself may look: closing a descriptor of one's own would take its locks from the whole process, and
    another process would then delete the log under those who still read it. Where there is a log, a connection that
    may write would put it into the file when it closes.
    """
    log = path.with_name(f"{path.name}-wal")
    mode = "ro" if log.exists() and log.stat().st_size else "rw"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=10)) as reader:
            (version,) = reader.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error:
        return  # whoever opens it for writing says what is wrong
    if version > SCHEMA:
        raise _newer(path, version)


def _newer(path: Path, version: int) -> JournalUnavailable:
    return JournalUnavailable(
        f"journal {path} was written by a newer Toka (form {version}, this one knows {SCHEMA})",
        hint="use that version, or choose another --state DIR",
    )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == SCHEMA:
            return
        if version > SCHEMA:
            raise _newer(path, version)
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _DDL.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={SCHEMA}")
        connection.execute("COMMIT")
    except sqlite3.Error as e:
        raise failure(e, path) from e
