"""Backups that are brought back, users that are forgotten, and stores that get another key."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from client.private import PrivateStore
from client.store import keys, places, receipts
from client.store.backup import backup, restore
from client.store.keys import Key
from client.store.rekey import rekey
from configs.errors import InputError
from strategies.privacy.ledger import LEDGER, Ledger
from tests.client.store.kept import HERE, MADE, NAMES, RUN, equal, files, fill, flip, spend, state

ANN, BOB, _ = NAMES


def of(home: Path, key: Key | None) -> PrivateStore:
    return PrivateStore(home / "nodes" / RUN, key)


def rounds(home: Path, user: str) -> int:
    with Ledger(home / LEDGER) as ledger:
        return ledger.participations().get(user, 0)


# ---------------------------------------------------------------------- copies
def test_a_copy_brings_everything_back_and_is_for_its_owner_alone(home: Path, key: Key | None, tmp_path: Path) -> None:
    fill(home, key)
    assert backup(home, tmp_path / "a.tar", key) == 3
    assert (tmp_path / "a.tar").stat().st_mode & 0o777 == 0o600
    done = restore(tmp_path / "a.tar", tmp_path / "new", key)
    assert (done.users, done.same, done.booked, done.ahead) == (3, 0, 9, 0)
    for i, user in enumerate(NAMES):
        assert equal(of(tmp_path / "new", key).load(user, 9, HERE), state(30 + i)) and rounds(tmp_path / "new", user) == 3
        assert equal(of(tmp_path / "new", key).load(user, 3, HERE), state(20 + i))
    again = restore(tmp_path / "a.tar", tmp_path / "new", key)
    assert (again.users, again.same, again.booked) == (0, 3, 0)
    with pytest.raises(InputError, match="exists already"):
        backup(home, tmp_path / "a.tar", key)


def test_a_copy_that_is_made_while_rounds_are_kept_fits_together(home: Path, key: Key | None, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    store, real = fill(home, key), Path.read_bytes
    turns = iter(range(4, 7))

    def meanwhile(self: Path) -> bytes:
        if self.name[0].isdigit() and "annabel" in (self.parent.name if key is None else "annabel") and (n := next(turns, None)):
            spend(home, [ANN], n)
            store.save(ANN, n, state(n), MADE)
        return real(self)

    with store.held([ANN]), monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", meanwhile)
        backup(home, tmp_path / "a.tar", key)
    restore(tmp_path / "a.tar", tmp_path / "new", key)
    shelf = of(tmp_path / "new", key).begin()
    said = shelf.manifest(ANN)
    assert said is not None and not list(shelf.damage(said)) and said.versions[-1].round >= 4
    assert rounds(tmp_path / "new", ANN) >= said.versions[-1].round, "its ledger holds at least what its states have cost"


def test_a_copy_that_is_damaged_or_none_changes_nothing(home: Path, key: Key | None, tmp_path: Path) -> None:
    fill(home, key)
    backup(home, tmp_path / "a.tar", key)
    flip(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"no archive" * 1000)
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        tar.add(home / LEDGER, "../../ledger.sqlite")
    for name in "abcd":
        with pytest.raises(InputError, match=rf"{name}\.tar (is no copy of a store, or is damaged|cannot be)"):
            restore(tmp_path / f"{name}.tar", tmp_path / "new", key)
    assert not files(tmp_path / "new")


def test_a_damaged_store_gives_no_copy(home: Path, key: Key | None, tmp_path: Path) -> None:
    store = fill(home, key)
    flip(max(store.begin().place(BOB).glob("[0-9]*")))
    with pytest.raises(InputError, match="is damaged"):
        backup(home, tmp_path / "a.tar", key)
    assert list(tmp_path.iterdir()) == [home]


@pytest.mark.parametrize("what", ["[0-9]*", "manifest.*"])
def test_a_copy_mends_what_is_damaged(home: Path, key: Key | None, tmp_path: Path, what: str) -> None:
    store = fill(home, key)
    backup(home, tmp_path / "a.tar", key)
    flip(max(store.begin().place(BOB).glob(what)))
    done = restore(tmp_path / "a.tar", home, key)
    assert (done.users, done.same) == (1, 2) and equal(of(home, key).load(BOB, 9, HERE), state(31))


def test_what_is_newer_is_never_overwritten_and_a_ledger_never_shrinks(home: Path, key: Key | None, tmp_path: Path) -> None:
    store = fill(home, key)
    backup(home, tmp_path / "a.tar", key)
    spend(home, [ANN], 4)
    before = files(home)
    done = restore(tmp_path / "a.tar", home, key)
    assert (done.ahead, done.booked) == (1, 0) and files(home) == before, "what has left since stays booked"
    store.save(ANN, 4, state(40), MADE)
    shutil.rmtree(store.begin().place(BOB))
    before = files(home)
    with pytest.raises(InputError, match=r"newer than the copy's of user 'annabel'; nothing was restored"):
        restore(tmp_path / "a.tar", home, key)
    assert files(home) == before


def test_two_ledgers_that_have_both_gone_on_are_not_made_one(home: Path, tmp_path: Path) -> None:
    fill(home, None)
    shutil.copytree(home, tmp_path / "twin")
    spend(tmp_path / "twin", [ANN], 5)
    spend(home, [ANN], 6)
    backup(tmp_path / "twin", tmp_path / "a.tar", None)
    before = files(home)
    with pytest.raises(InputError, match=r"each went on \(1 and 1 bookings\)"):
        restore(tmp_path / "a.tar", home, None)
    assert files(home) == before


def test_a_store_in_use_is_not_restored_into(home: Path, key: Key | None, tmp_path: Path) -> None:
    store = fill(home, key)
    backup(home, tmp_path / "a.tar", key)
    with store.held([ANN]), pytest.raises(InputError, match="in use"):
        restore(tmp_path / "a.tar", home, key)


# ---------------------------------------------------------------------- forgetting
def test_nothing_of_a_forgotten_user_is_left_but_their_ledger_line(home: Path, key: Key | None) -> None:
    store = fill(home, key)
    with store.held(NAMES):
        pass
    place = store.begin().place(ANN)
    (place / ".000004.safetensors.77.tmp").write_bytes(state(30)["private/a"].numpy().tobytes())
    gone = [data for path, data in files(home / "nodes").items() if place.name in path]
    said = json.loads(receipts.forget(home, ANN, key).read_text())
    assert (said["user"], said["found_after"], said["ledgers_keep_rounds"]) == (ANN, [], {LEDGER: 3})
    assert len(said["removed"]) == len(gone) and any("copies" in line for line in said["not_covered"])
    left = {path: path.read_bytes() for path in (home / "nodes").rglob("*") if path.is_file()}
    assert left and not [p for p in left if "annabel" in str(p) or place.name in str(p)]
    assert not [p for p, data in left.items() if b"annabel" in data or any(g[-90:-30] in data for g in gone if len(g) > 1200)]
    assert of(home, key).load(ANN, 9) is None and equal(of(home, key).load(BOB, 9, HERE), state(31)) and rounds(home, ANN) == 3


def test_what_a_search_still_finds_is_said(home: Path, key: Key | None, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(home, key)
    lost = store.folder / "lost"
    lost.write_bytes(b"?" + max(store.begin().place(ANN).glob("[0-9]*")).read_bytes())
    with pytest.raises(InputError, match=r"nodes/x-1234abcd/lost still holds the name or bytes of user 'annabel'"):
        receipts.forget(home, ANN, key)
    lost.unlink()
    fill(home, key)
    monkeypatch.setattr(receipts, "_remove", lambda *_: None)
    with pytest.raises(InputError, match="still holds"):
        receipts.forget(home, ANN, key)


def test_what_everybody_has_is_nobodys_own(home: Path) -> None:
    store = fill(home, None)
    store.save(BOB, 4, state(30), MADE)
    assert '"found_after": []' in receipts.forget(home, ANN, None).read_text()


def test_a_copy_does_not_bring_a_forgotten_user_back(home: Path, key: Key | None, tmp_path: Path) -> None:
    fill(home, key)
    backup(home, tmp_path / "a.tar", key)
    receipts.forget(home, ANN, key)
    done = restore(tmp_path / "a.tar", home, key)
    assert done.forgotten == (ANN,) and of(home, key).load(ANN, 9) is None


def test_who_is_unknown_is_said_to_be_with_the_nearest_name(home: Path, key: Key | None) -> None:
    fill(home, key)
    with pytest.raises(InputError, match=r"knows a user 'annabell' \(did you mean 'annabel'\?\)"):
        receipts.forget(home, "annabell", key)
    with pytest.raises(InputError, match="holds no private store"):
        receipts.forget(home / "nodes", ANN, key)
    assert not places.stores(home / "nowhere", some=False)


# ---------------------------------------------------------------------- keys
def test_after_forgetting_and_another_key_an_old_copy_opens_with_the_old_key_only(home: Path, made_key: Key, tmp_path: Path) -> None:
    fill(home, made_key)
    backup(home, tmp_path / "a.tar", made_key)
    receipts.forget(home, ANN, made_key)
    other = keys.make(str(tmp_path / "other.key"))
    assert rekey(home / "nodes" / RUN, made_key, other) == 2
    assert equal(of(home, other).load(BOB, 9, HERE), state(31))
    with pytest.raises(InputError, match=f"sealed with key {made_key.id}"):
        restore(tmp_path / "a.tar", tmp_path / "new", other)
    done = restore(tmp_path / "a.tar", tmp_path / "new", other, made_key)
    assert done.users == 3 and equal(of(tmp_path / "new", other).load(ANN, 9, HERE), state(30))


def test_a_rekey_takes_the_right_key_a_whole_store_and_nobody_in_it(home: Path, made_key: Key, tmp_path: Path) -> None:
    store, other = fill(home, made_key), keys.make(str(tmp_path / "other.key"))
    folder, before = home / "nodes" / RUN, files(home)
    for old, new, said in ((other, made_key, "already"), (other, None, f"holds key {other.id}"), (None, other, "is sealed with")):
        with pytest.raises(InputError, match=said):
            rekey(folder, old, new)
    with store.held([ANN]), pytest.raises(InputError, match="in use"):
        rekey(folder, made_key, other)
    assert files(home) == before
    flip(max(store.begin().place(BOB).glob("[0-9]*")))
    with pytest.raises(InputError, match="is damaged"):
        rekey(folder, made_key, other)
    assert equal(of(home, made_key).load(ANN, 9, HERE), state(30))
