"""The ledger: what is booked stays booked, whole and once, through kills, races and repeats; and nobody is booked beyond a budget."""

import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import InputError
from strategies.privacy import bounds
from strategies.privacy.accounting import affordable, epsilons
from strategies.privacy.events import Event, merged
from strategies.privacy.ledger import HISTORIES, HISTORY, Ledger, Spend

ROOT = Path(__file__).resolve().parents[3]
STEP = Event(1.0)
SPEND = Spend("ann", "run", 1, "shared", STEP, keyed=True)
FRESH = replace(SPEND, keyed=False)

CHILD = """
import os, signal, sqlite3, sys, time, types
from dataclasses import replace
from pathlib import Path

def epsilons(histories, delta, accountant):
    time.sleep(0.002)
    return [float(sum(event.steps for event in history)) for history in histories]

accounting = types.ModuleType("strategies.privacy.accounting")
accounting.epsilons = epsilons
sys.modules[accounting.__name__] = accounting

from strategies.privacy.events import Event
from strategies.privacy.ledger import Ledger, Spend

SPEND = Spend("ann", "run", 1, "shared", Event(1.0), keyed=True)
FRESH = replace(SPEND, keyed=False)
path, me = Path(sys.argv[1]), sys.argv[2]
"""


def child(code: str, path: Path, me: object = 0) -> subprocess.Popen[str]:
    """Another process, with steps for epsilons."""
    return subprocess.Popen([sys.executable, "-c", CHILD + code, str(path), str(me)], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def said(process: subprocess.Popen[str]) -> str:
    """What a process that ends well has printed."""
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out


def steps(ledger: Ledger, user: str = "ann") -> int:
    """All steps a user is booked for."""
    return sum(event.steps for event in ledger.history(user))


# ------------------------------------------------------------------ what is booked
EVENTS = st.builds(
    Event,
    st.floats(0.0, allow_nan=False),
    st.integers(0, 2**40),
    st.floats(0.0, 1.0, exclude_min=True),
    st.sampled_from(["all", "poisson", "fixed"]),
    st.sampled_from(["gaussian", "concentrated"]),
)


@given(st.lists(EVENTS, max_size=8))
@settings(max_examples=40, deadline=None)
def test_events_read_back_equal(events: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with Ledger(Path(folder) / "a") as ledger:
            ledger.spend(replace(FRESH, event=event) for event in events)
        with Ledger(Path(folder) / "a") as ledger:
            assert ledger.history("ann") == merged(events)
            assert ledger.histories() == ({"ann": merged(events)} if events else {})


COSTS = (Event(1.0), Event(2.5, 3), Event(0.8, 10, 0.1, "poisson"))
SPENDS = st.builds(
    Spend, st.sampled_from("ab"), st.sampled_from("xy"), st.integers(1, 2), st.sampled_from("sp"), st.sampled_from(COSTS), st.booleans()
)


@given(st.lists(st.lists(SPENDS, max_size=4), max_size=8))
@settings(max_examples=60, deadline=None)
def test_a_history_is_all_that_was_booked_and_its_epsilon_never_falls(batches: list[list[Spend]]) -> None:
    booked: list[Spend] = []
    before = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        for batch in batches:
            draws = {_key(s): s.event for s in booked if s.keyed}
            clash = any(draws.setdefault(_key(s), s.event) != s.event for s in batch if s.keyed)
            with Ledger(Path(folder) / "a") as ledger:
                if clash:
                    with pytest.raises(InputError, match="choose another run"):
                        ledger.spend(batch)
                else:
                    ledger.spend(batch)
                    booked += batch
                found = [ledger.history(user) for user in "ab"]
                assert found == [_history(booked, user) for user in "ab"]
                assert ledger.history("a", besides="x") == _history([s for s in booked if s.run != "x"], "a")
                assert ledger.histories() == {user: found["ab".index(user)] for user in ledger.users()}
                assert ledger.users() == sorted({s.user for s in booked})
                assert ledger.runs() == sorted({s.run for s in booked})
                assert ledger.rounds("a", "x") == len({s.round for s in booked if (s.user, s.run) == ("a", "x")})
            now = epsilons(found, 1e-5, "rdp")
            assert all(a <= b for a, b in zip(before, now, strict=True))
            before = now


def _key(spend: Spend) -> tuple[str, str, int, str]:
    return spend.user, spend.run, spend.round, spend.what


def _history(booked: list[Spend], user: str) -> tuple[Event, ...]:
    mine = [spend for spend in booked if spend.user == user]
    return merged([*(s.event for s in mine if not s.keyed), *{_key(s): s.event for s in mine if s.keyed}.values()])


def test_a_keyed_release_is_booked_once_and_a_fresh_one_each_time(book: Ledger) -> None:
    book.spend([SPEND, SPEND])
    book.spend([SPEND])
    assert steps(book) == 1
    book.spend([FRESH, FRESH])
    book.spend([FRESH])
    assert steps(book) == 4


def test_one_draw_at_two_scales_is_refused_and_nothing_of_its_batch_is_booked(book: Ledger) -> None:
    book.spend([SPEND])
    with pytest.raises(InputError, match=r"round 1 of run 'run' is booked for user 'ann' \(shared\)"):
        book.spend([replace(FRESH, user="bob"), replace(SPEND, event=Event(2.0))])
    with pytest.raises(InputError, match="choose another run"):
        book.spend_within([FRESH, replace(SPEND, event=Event(2.0))], 1e9, 1e-5)
    assert book.histories() == {"ann": (STEP,)}


def test_a_booking_that_fails_leaves_nothing_and_the_ledger_goes_on(book: Ledger) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        book.spend([FRESH, replace(FRESH, what=None)])  # pyright: ignore[reportArgumentType]
    assert book.histories() == {}
    book.spend([FRESH])
    assert steps(book) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE spends SET steps = 0",
        "UPDATE OR REPLACE spends SET round = 2",
        "UPDATE OR IGNORE spends SET noise = 99",
        "DELETE FROM spends",
        "DELETE FROM spends WHERE user = 'ann'",
        "REPLACE INTO spends SELECT user, run, round, what, nth, 99, steps, rate, sampling, kind FROM spends",
        "INSERT OR REPLACE INTO spends VALUES ('ann', 'run', 1, 'shared', 0, 99, 1, 1, 'all', 'gaussian')",
        "INSERT INTO spends VALUES ('ann', 'run', 1, 'shared', 0, 99, 1, 1, 'all', 'gaussian') ON CONFLICT DO UPDATE SET noise = 99",
    ],
)
def test_the_file_itself_refuses_to_forget(book: Ledger, path: Path, statement: str) -> None:
    book.spend([SPEND, replace(SPEND, round=2)])
    with closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.IntegrityError, match="only grows"):
        db.execute(statement)
    assert book.history("ann") == (Event(1.0, 2),)


@pytest.mark.parametrize(
    "columns", ["9, 99, -1, 1", "9, -1, 1, 1", "9, 1, 1, 0", "9, 1, 1, 2", "-1, 1, 1, 1", "9, 1, 'x', 1", "9, NULL, 1, 1"]
)
def test_the_file_itself_refuses_what_is_no_cost(book: Ledger, path: Path, columns: str) -> None:
    with closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute(f"INSERT INTO spends VALUES ('ann', 'run', 1, 'shared', {columns}, 'all', 'gaussian')")
    assert book.histories() == {}


def test_histories_are_read_in_the_order_of_an_index_without_sorting(book: Ledger, path: Path) -> None:
    assert not book.histories()
    with closing(sqlite3.connect(path)) as db:
        plans = [
            str(db.execute(f"EXPLAIN QUERY PLAN {sql}", given).fetchall()) for sql, given in ((HISTORIES, ()), (HISTORY, ("ann", None)))
        ]
    assert all("COVERING INDEX costs" in plan and "TEMP" not in plan for plan in plans)


# ------------------------------------------------------------------ budgets
def test_a_user_is_booked_within_the_budget_of_all_runs_wholly_or_not_at_all(book: Ledger) -> None:
    event = Event(20.0)
    book.spend([replace(FRESH, run="before", event=replace(event, steps=5))])
    left = affordable(event, book.history("ann"), 1.0, 1e-5)
    assert left > 5
    one = replace(FRESH, event=event)
    several = [replace(one, what=str(n)) for n in range(left + 1)]
    assert book.spend_within([*several, replace(one, user="bob")], 1.0, 1e-5) == {"bob"}
    assert (steps(book), steps(book, "bob")) == (5, 1)
    assert [book.spend_within([one], 1.0, 1e-5) for _ in range(left + 1)] == [{"ann"}] * left + [frozenset()]
    assert epsilons([book.history("ann")], 1e-5)[0] <= 1.0


def test_a_repeated_keyed_release_is_free_at_the_end_of_a_budget(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "epsilons", lambda histories, *_: [float(sum(e.steps for e in h)) for h in histories])
    assert book.spend_within([SPEND, SPEND], 1.0, 1e-5) == {"ann"}
    assert book.spend_within([SPEND], 1.0, 1e-5) == {"ann"}
    assert book.spend_within([SPEND], 0.5, 1e-5) == {"ann"}
    assert book.spend_within([SPEND, replace(SPEND, round=2)], 1.0, 1e-5) == frozenset()
    assert book.spend_within([FRESH], 1.0, 1e-5) == frozenset()
    assert steps(book) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_epsilon_is_no_permission_and_the_accountant_is_the_one_asked_for(
    book: Ledger, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    asked = []
    monkeypatch.setattr(bounds, "epsilons", lambda *given: asked.append(given) or [value])
    assert book.spend_within([FRESH], 9.0, 1e-6, "prv") == frozenset()
    assert asked == [([(STEP,)], 1e-6, "prv")]
    assert book.histories() == {}
    monkeypatch.undo()
    assert book.spend_within([], 9.0, 1e-6) == frozenset()
    with pytest.raises(InputError, match="gdp"):
        book.spend_within([FRESH], 9.0, 1e-6, "gdp")


# ------------------------------------------------------------------ several at a time
def test_processes_that_book_at_once_lose_and_double_nothing(path: Path) -> None:
    code = """
with Ledger(path) as ledger:
    for n in range(20):
        ledger.spend([FRESH, replace(SPEND, user="bob", round=n), replace(FRESH, user=me)])
"""
    for process in [child(code, path, f"p{n}") for n in range(4)]:
        said(process)
    with Ledger(path) as ledger:
        assert {user: steps(ledger, user) for user in ledger.users()} == {"ann": 80, "bob": 20, **{f"p{n}": 20 for n in range(4)}}
        assert ledger.rounds("bob", "run") == 20


def test_of_processes_that_race_for_the_last_of_a_budget_one_gets_it(book: Ledger, path: Path) -> None:
    users = [f"u{n}" for n in range(20)]
    book.spend([replace(FRESH, user=user) for user in users])
    code = """
with Ledger(path) as ledger:
    print(len(ledger.users()), flush=True)
    while not path.with_name("go").exists():
        time.sleep(0.001)
    for n in range(20):
        print(*ledger.spend_within([replace(FRESH, user=f"u{n}", run=me)], 2.0, 1e-5))
"""
    processes = [child(code, path, n) for n in range(3)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "20\n"
    path.with_name("go").touch()
    won = " ".join(said(process) for process in processes).split()
    assert sorted(won) == sorted(users)
    assert {steps(book, user) for user in users} == {2}


def test_threads_share_a_ledger(book: Ledger) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: (book.spend([FRESH]), book.histories(), book.spend([replace(SPEND, round=n % 5)])), range(20)))
    assert steps(book) == 25


def test_a_ledger_refuses_to_cross_a_fork(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        with pytest.raises(RuntimeError, match="fork"):
            book.spend([SPEND])
    assert book.histories() == {}


# ------------------------------------------------------------------ kills
def test_a_kill_at_any_statement_leaves_what_has_returned_and_nothing_by_halves(path: Path) -> None:
    code = """
def count(_):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

def connect(*given, **named):
    db = real(*given, **named)
    db.set_trace_callback(count)
    return db

real, sqlite3.connect = sqlite3.connect, connect
for kill in range(1000):
    here = path.with_name(f"{kill}.db")
    if not os.fork():
        left = kill
        ledger, returned = Ledger(here), os.open(here.with_suffix(".returned"), os.O_CREAT | os.O_WRONLY)
        for n in (1, 2):
            ledger.spend(replace(s, user=u, round=n) for s in (SPEND, FRESH) for u in ("ann", "bob"))
            os.write(returned, b"x")
        os._exit(0)
    if not os.wait()[1]:
        break
print(kill)
"""
    last = int(said(child(code, path)))
    assert last > 30
    seen = set()
    for kill in range(last + 1):
        here = path.with_name(f"{kill}.db")
        note = here.with_suffix(".returned")
        returned = len(note.read_bytes()) if note.exists() else 0
        begun = here.exists()
        with Ledger(here) as ledger:
            booked = ledger.rounds("ann", "run")
            assert booked == returned
            assert ledger.histories() == ({user: (Event(1.0, 2 * booked),) for user in ("ann", "bob")} if booked else {})
            seen.add((begun, booked))
            ledger.spend([SPEND, replace(SPEND, round=2)])
            assert steps(ledger) == 2 + booked
    assert seen == {(False, 0), (True, 0), (True, 1), (True, 2)}


def test_kills_at_any_moment_lose_nothing_that_has_returned(path: Path) -> None:
    code = """
ledger = Ledger(path)
while True:
    ledger.spend([FRESH, replace(FRESH, user="bob")])
    os.write(1, b"x")
"""
    draw, returned, kills = random.Random(0), 0, 8
    for _ in range(kills):
        process = child(code, path)
        assert process.stdout
        returned += len(process.stdout.read(1))
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        returned += len(process.communicate()[0])
        with Ledger(path) as ledger:
            assert steps(ledger) == steps(ledger, "bob")
            assert returned <= steps(ledger) <= returned + kills
    assert returned > kills


def test_a_commit_is_on_disk_before_it_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **named: opened.append(connect(*given, **named)) or opened[-1])
    with Ledger(path) as ledger:
        ledger.spend([SPEND])
        pragmas = [opened[-1].execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["delete", 3], "a journal that is removed needs EXTRA: FULL leaves its removal to chance"
