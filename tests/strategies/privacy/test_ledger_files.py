"""A ledger's file: its owner's alone, and nothing that is no whole ledger is taken for one."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import InputError
from strategies.privacy import ledger as module
from strategies.privacy.events import Event
from strategies.privacy.ledger import Ledger, Spend

STEP = Event(1.0)
SPEND = Spend("ann", "run", 1, "shared", STEP, keyed=True)
FRESH = replace(SPEND, keyed=False)


def test_only_its_owner_may_read_a_ledger_and_its_folder_holds_nothing_else(path: Path) -> None:
    mask = os.umask(0)
    try:
        with Ledger(path) as ledger:
            ledger.spend([SPEND])
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_who_comes_second_to_an_empty_folder_takes_the_ledger_that_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def late(scratch: str, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        with Ledger(target) as first:
            first.spend([SPEND])
        link(scratch, target)

    monkeypatch.setattr(os, "link", late)
    with Ledger(path) as second:
        assert second.history("ann") == (STEP,)


def _cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def _zero_a_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5 * 4096 : 6 * 4096] = bytes(4096)
    path.write_bytes(data)


def _sql(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(statement)


WRONG: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("user,run,round\n" * 100),
    "nothing": lambda path: _cut(path, 0),
    "half a header": lambda path: _cut(path, 50),
    "one page": lambda path: _cut(path, 4096),
    "half the pages": lambda path: _cut(path, path.stat().st_size // 8192 * 4096),
    "part of the last page": lambda path: _cut(path, path.stat().st_size - 100),
    "a zeroed page": _zero_a_page,
    "no triggers": lambda path: _sql(path, "DROP TRIGGER deletes"),
    "another trigger": lambda path: _sql(path, "CREATE TRIGGER t AFTER INSERT ON spends BEGIN SELECT 1; END"),
    "older format": lambda path: _sql(path, "PRAGMA user_version = 0"),
    "another database": lambda path: (path.unlink(), _sql(path, "CREATE TABLE notes (text)")),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_is_no_whole_ledger_is_refused_by_name_and_left_as_it_is(path: Path, wrong: str) -> None:
    with Ledger(path) as ledger:
        ledger.spend(replace(FRESH, user=str(n)) for n in range(500))
    WRONG[wrong](path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"ledger\.db.*(no ledger|damaged|malformed|not a database)"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_newer_format_is_refused_with_what_to_do(book: Ledger, path: Path) -> None:
    book.spend([SPEND])
    _sql(path, f"PRAGMA user_version = {module.VERSION + 1}")
    with pytest.raises(InputError, match=r"ledger\.db has format 2, and .* up to 1; use a newer program"):
        Ledger(path)


def test_a_folder_that_is_missing_and_a_path_that_is_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/ledger\.db.*folder does not exist"):
        Ledger(tmp_path / "nowhere" / "ledger.db")
    with pytest.raises(InputError, match=str(tmp_path)):
        Ledger(tmp_path)


def test_odd_names_are_names(tmp_path: Path) -> None:
    with Ledger(tmp_path / "100% of #1? ü.db") as ledger:
        names = ["", "a\0b", "a", "A", "ä", "'; DROP TABLE spends; --"]
        ledger.spend(replace(SPEND, user=name, run=name) for name in names)
        assert ledger.users() == ledger.runs() == sorted(names)
        assert all(ledger.history(name) == (STEP,) for name in names)
    assert (tmp_path / "100% of #1? ü.db").is_file()
