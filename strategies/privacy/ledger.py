"""The ledger: every privacy spend, committed before its release leaves; a crash between the two loses utility and never privacy.

A spend is a row of an SQLite file, and rows are only added: the file itself refuses to change, replace or delete one. A second booking
of one (user, run, round, what)

    keyed, the same event       changes nothing: the release repeats the same random draw, so it is the same release
    keyed, another event        is refused: of two scales of one draw the noise can be worked out
    fresh noise                 counts again: it is another release
"""

import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from operator import index
from pathlib import Path
from tempfile import mkstemp
from typing import Self

from configs.errors import InputError
from strategies.privacy.bounds import within
from strategies.privacy.events import Event, merged

LEDGER, JOINT = "ledger.sqlite", "joint.sqlite"  # what the files of guarantees E and U are called, in whatever folder
VERSION = 1  # of the file's format, kept in its user_version
WAIT = 600.0  # seconds that a process waits for another one's booking

SCHEMA = (
    """CREATE TABLE spends (
        user TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, what TEXT NOT NULL,
        nth INTEGER NOT NULL CHECK (nth >= 0), -- 0: keyed noise; 1, 2, ...: the bookings of fresh noise
        noise REAL NOT NULL CHECK (noise >= 0), steps INTEGER NOT NULL CHECK (steps >= 0),
        rate REAL NOT NULL CHECK (rate > 0 AND rate <= 1), sampling TEXT NOT NULL, kind TEXT NOT NULL,
        PRIMARY KEY (user, run, round, what, nth)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX costs ON spends (user, noise, rate, sampling, kind, steps)",  # in the order of HISTORIES, which then sorts nothing
    "CREATE TRIGGER updates BEFORE UPDATE ON spends BEGIN SELECT RAISE(ABORT, 'a ledger only grows'); END",
    "CREATE TRIGGER deletes BEFORE DELETE ON spends BEGIN SELECT RAISE(ABORT, 'a ledger only grows'); END",
    """CREATE TRIGGER replaces BEFORE INSERT ON spends WHEN EXISTS (
        SELECT 1 FROM spends WHERE user = NEW.user AND run = NEW.run AND round = NEW.round AND what = NEW.what AND nth = NEW.nth
    ) BEGIN SELECT RAISE(ABORT, 'a ledger only grows'); END""",
)
BOOK = """INSERT INTO spends SELECT ?1, ?2, ?3, ?4, CASE WHEN ?5 THEN 0 ELSE 1 + coalesce(max(nth), 0) END, ?6, ?7, ?8, ?9, ?10
    FROM spends WHERE user = ?1 AND run = ?2 AND round = ?3 AND what = ?4"""
KEYED = """SELECT noise, steps, rate, sampling, kind FROM spends
    WHERE user = ? AND run = ? AND round = ? AND what = ? AND nth = 0"""
HISTORY = (
    "SELECT noise, sum(steps), rate, sampling, kind FROM spends WHERE user = ? AND run IS NOT ? GROUP BY noise, rate, sampling, kind"
)
HISTORIES = """SELECT user, noise, sum(steps), rate, sampling, kind FROM spends
    GROUP BY user, noise, rate, sampling, kind ORDER BY user, noise, rate, sampling, kind"""

BOOKINGS = """SELECT run, count(DISTINCT user), count(DISTINCT round), group_concat(DISTINCT what), min(nth) > 0
    FROM spends GROUP BY run ORDER BY run"""
ROWS = "SELECT user, run, round, what, nth, noise, steps, rate, sampling, kind FROM spends"
PARTICIPATIONS = "SELECT user, count(*) FROM (SELECT DISTINCT user, run, round FROM spends) GROUP BY user ORDER BY user"


@dataclass(frozen=True)
class Booking:
    """What one run has booked."""

    run: str
    users: int
    rounds: int
    what: tuple[str, ...]  # the parts, sorted
    fresh: bool  # all noise was fresh; False: some of it is a function of the seed


@dataclass(frozen=True)
class Spend:
    """What one release costs one user."""

    user: str
    run: str
    round: int
    what: str  # the part that is released: "shared", "private", "final", "joint"
    event: Event
    keyed: bool  # the noise is a function of (run, round, user, what) alone; False: it is fresh


class Ledger:
    """The ledger in a file, for all runs, processes and threads. Raises `InputError` where the file cannot be used.

    What has returned survives a kill and a loss of power. A ledger does not cross a fork: each process opens its own.
    """

    def __init__(self, path: Path) -> None:
        """Open it, or begin an empty one (mode 0600) where there is no file; its folder must exist."""
        self.path, self._lock, self._process = path, threading.RLock(), os.getpid()
        with _told(path):
            if not path.exists():
                _create(path)
            self._db = _open(path)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def spend(self, spends: Iterable[Spend]) -> None:
        """Book all of them or, where it raises, none. Their releases may leave when it has returned."""
        asked = list(spends)
        with self._writing() as db:
            _book(db, _fresh(db, asked))

    def spend_within(self, spends: Iterable[Spend], epsilon: float, delta: float, accountant: str = "pld") -> frozenset[str]:
        """Book the spends of those users who stay within (epsilon, delta), over all their runs; of the others none. Returns the former.

        At once: of two processes that ask for the last of a budget one gets it. What is booked already costs nothing.
        """
        asked: defaultdict[str, list[Spend]] = defaultdict(list)
        for spend in spends:
            asked[spend.user].append(spend)
        with self._writing() as db:
            fresh = {user: _fresh(db, theirs) for user, theirs in asked.items()}
            paying = [user for user, costs in fresh.items() if costs]
            after = [merged((*_history(db, user), *(s.event for s in fresh[user]))) for user in paying]
            refused = {user for user, fits in zip(paying, within(after, epsilon, delta, accountant), strict=True) if not fits}
            _book(db, [spend for user, costs in fresh.items() if user not in refused for spend in costs])
        return frozenset(asked.keys() - refused)

    def history(self, user: str, besides: str | None = None) -> tuple[Event, ...]:
        """All that a user has spent, merged; () for who has not. ``besides``: without what one run has spent."""
        with self._reading() as db:
            return _history(db, user, besides)

    def histories(self) -> dict[str, tuple[Event, ...]]:
        """``history`` of everyone who is booked, by name."""
        with self._reading() as db:
            rows = db.execute(HISTORIES).fetchall()
        return {user: merged(Event(*row[1:]) for row in theirs) for user, theirs in groupby(rows, lambda row: row[0])}

    def rounds(self, user: str, run: str) -> int:
        """In how many rounds of a run the user is booked."""
        with self._reading() as db:
            return db.execute("SELECT count(DISTINCT round) FROM spends WHERE user = ? AND run = ?", (user, run)).fetchone()[0]

    def runs(self) -> list[str]:
        """The runs in which anyone is booked, sorted."""
        with self._reading() as db:
            return [run for (run,) in db.execute("SELECT DISTINCT run FROM spends ORDER BY run")]

    def bookings(self) -> tuple[Booking, ...]:
        """What each run has booked, by name."""
        with self._reading() as db:
            rows = db.execute(BOOKINGS).fetchall()
        return tuple(
            Booking(run, users, rounds, tuple(sorted(what.split(","))), bool(fresh)) for run, users, rounds, what, fresh in rows
        )

    def participations(self) -> dict[str, int]:
        """In how many rounds each user is booked, over all runs."""
        with self._reading() as db:
            return dict(db.execute(PARTICIPATIONS).fetchall())

    def users(self) -> list[str]:
        """Who is booked, sorted."""
        with self._reading() as db:
            return [user for (user,) in db.execute("SELECT DISTINCT user FROM spends ORDER BY user")]

    def copy(self, path: Path) -> None:
        """Write a whole copy of this moment, whoever books meanwhile."""
        with self._reading() as db, closing(sqlite3.connect(path)) as copy:
            db.backup(copy)

    def beyond(self, other: "Ledger") -> int:
        """How many bookings this ledger holds that another lacks."""
        return len(self._rows() - other._rows())

    def take_over(self, copy: "Ledger") -> int:
        """Book what a later copy of this ledger holds beyond it, and return how much. An earlier copy changes nothing.

        Raises `InputError` where each holds what the other lacks: both have gone on by themselves, and neither counts everything.
        """
        with self._writing() as db:
            mine, theirs = set(db.execute(ROWS)), copy._rows()
            if mine - theirs and theirs - mine:
                raise InputError(
                    f"the ledger {self.path} and its copy each went on ({len(mine - theirs)} and {len(theirs - mine)} bookings), so "
                    "that neither counts all that has left; nothing was changed"
                )
            db.executemany("INSERT INTO spends VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", theirs - mine)
            return len(theirs - mine)

    def _rows(self) -> set[tuple[object, ...]]:
        with self._reading() as db:
            return set(db.execute(ROWS))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if os.getpid() != self._process:
            raise RuntimeError("a ledger does not cross a fork: open it in the process that uses it")
        with self._lock, _told(self.path):
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db:
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")


def _fresh(db: sqlite3.Connection, spends: Iterable[Spend]) -> list[Spend]:
    """The spends without those that are booked already, or twice among them. Raises `InputError` for a keyed one with another event."""
    fresh: list[Spend] = []
    seen: dict[tuple[str, str, int, str], Event] = {}
    for spend in spends:
        key = (spend.user, spend.run, spend.round, spend.what)
        known = seen.get(key) or _keyed(db, key) if spend.keyed else None
        if known is None:
            fresh.append(spend)
            if spend.keyed:
                seen[key] = spend.event
        elif known != spend.event:
            raise InputError(
                f"round {spend.round} of run '{spend.run}' is booked for user '{spend.user}' ({spend.what}) as {known}, not as "
                f"{spend.event}: the same noise at another scale would give itself away; choose another run"
            )
    return fresh


def _keyed(db: sqlite3.Connection, key: tuple[str, str, int, str]) -> Event | None:
    row = db.execute(KEYED, key).fetchone()
    return Event(*row) if row else None


def _book(db: sqlite3.Connection, spends: Iterable[Spend]) -> None:
    costs = ((s, s.event) for s in spends)
    db.executemany(
        BOOK,
        (
            (s.user, s.run, index(s.round), s.what, s.keyed, float(e.noise), index(e.steps), float(e.rate), e.sampling, e.kind)
            for s, e in costs
        ),
    )


def _history(db: sqlite3.Connection, user: str, besides: str | None = None) -> tuple[Event, ...]:
    return merged(Event(*row) for row in db.execute(HISTORY, (user, besides)))


def _create(path: Path) -> None:
    """Make an empty ledger, whole or not at all, so that a file cut to nothing is never taken for one; another process's stays."""
    if not path.parent.is_dir():
        raise InputError(f"the ledger {path} cannot be made: its folder does not exist")
    descriptor, scratch = mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(scratch, isolation_level=None)) as db:
            for statement in ("BEGIN", *SCHEMA, f"PRAGMA user_version = {VERSION}", "COMMIT"):
                db.execute(statement)
        with suppress(FileExistsError):
            os.link(scratch, path)
    finally:
        Path(scratch).unlink()


def _open(path: Path) -> sqlite3.Connection:
    """Connect to a whole ledger. EXTRA is FULL and a flush of the folder, without which a loss of power may undo a commit."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    db = sqlite3.connect(uri, uri=True, timeout=WAIT, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA synchronous = EXTRA")
        _check(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _check(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise InputError(f"the ledger {path} has format {version}, and this program knows formats up to {VERSION}; use a newer program")
    found = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
    if version != VERSION or found != set(SCHEMA):
        raise InputError(f"{path} is no ledger, or one without its safeguards; name another file")
    (said,) = db.execute("PRAGMA integrity_check(1)").fetchone()
    if said != "ok":
        raise InputError(f"the ledger {path} is damaged ({said}); only a copy that holds every release until now can take its place")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say in a sentence what is wrong with the file; a refused row or call is the program's own fault, and passes."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except (OSError, sqlite3.DatabaseError) as error:
        raise InputError(f"the ledger {path} cannot be used: {error}") from error
