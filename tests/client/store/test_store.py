"""What a store promises about versions, damage, other bases, other keys, other processes and modes of files."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.private import PrivateStore
from client.store import disk, keys, manifest
from client.store.keys import Key
from client.store.vault import FORMAT, KEY
from configs.errors import InputError
from tests.client.store.kept import HERE, MADE, NAMES, RUN, equal, files, fill, flip, state, wants

ANN = NAMES[0]
FORKS = multiprocessing.get_context("fork")


def of(home: Path, key: Key | None) -> PrivateStore:
    return PrivateStore(home / "nodes" / RUN, key)


def place(store: PrivateStore, user: str = ANN) -> Path:
    shelf = store.shelf()
    assert shelf is not None
    return shelf.place(user)


def newest(store: PrivateStore, user: str = ANN) -> Path:
    return max(place(store, user).glob("[0-9]*"))


# ---------------------------------------------------------------------- versions
def test_a_round_that_is_repeated_starts_where_it_started_first_and_older_versions_go(home: Path, key: Key | None) -> None:
    store = fill(home, key, booked=False)
    assert equal(store.load(ANN, 3), state(20)) and equal(store.load(ANN, 99), state(30))
    store.save(ANN, 3, state(31), MADE)
    again = of(home, key)
    assert equal(again.load(ANN, 3), state(20)) and equal(again.load(ANN, 4), state(31))
    assert len(list(place(again).glob("[0-9]*"))) == 2
    assert again.load("nobody", 9) is None


def test_who_has_lost_what_they_had_does_not_begin_anew(home: Path, key: Key | None) -> None:
    store = fill(home, key, booked=False)
    assert store.load(ANN, 1) is None, "their first round begins from nothing, however often"
    with pytest.raises(InputError, match=r"'annabel' had before round 2 is no longer .* holds of them: 2, 3; .* restore a backup"):
        store.load(ANN, 2)


def test_rounds_that_do_not_count_are_dropped_and_a_user_without_any_other_with_them(home: Path, key: Key | None) -> None:
    store = fill(home, key, booked=False)
    store.save("late", 3, state(1), MADE)
    store.forget_after(2)
    assert equal(of(home, key).load(ANN, 99), state(20)) and of(home, key).load("late", 99) is None
    assert not place(store, "late").exists()


def test_a_version_may_hold_more_than_an_adapter_and_all_of_it_counts_at_once(home: Path, key: Key | None) -> None:
    store = fill(home, key, 1, booked=False)
    store.save_parts(ANN, 2, {"private": state(1), "memory": state(2), "slow": state(3)}, MADE)
    found = of(home, key).parts(ANN, 3, HERE)
    assert set(found) == {"private", "memory", "slow"} and equal(found["memory"], state(2)) and equal(found["slow"], state(3))


def test_the_manifest_says_what_a_version_was_made_on_and_which_files_it_has(home: Path) -> None:
    folder = place(fill(home, None, booked=False))
    (path,) = folder.glob("manifest.*")
    said = json.loads(path.read_text())
    last = said["versions"][-1]
    assert (said["user"], said["first"], [v["round"] for v in said["versions"]]) == (ANN, 1, [2, 3])
    assert (last["base"], last["tokenizer"], last["adapter"]) == HERE and last["shared"] == {"round": 1, "sha256": MADE.shared}
    assert last["ledgers"] == ["ledger.sqlite#x"] and last["created"].endswith("+00:00")
    data = (folder / last["files"]["private"]["name"]).read_bytes()
    assert manifest.file("000003.safetensors", data)._asdict() == last["files"]["private"]


# ---------------------------------------------------------------------- damage
SPOILS: dict[str, Callable[[Path], object]] = {
    "a bit": flip, "cut": lambda p: os.truncate(p, 20), "empty": lambda p: os.truncate(p, 0), "gone": Path.unlink,
    "former": lambda p: shutil.copy(min(p.parent.glob("[0-9]*")), p),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_state_is_said_to_be_so_and_nothing_stands_in_for_it(home: Path, key: Key | None, spoil: str) -> None:
    store = fill(home, key, booked=False)
    path = newest(store)
    SPOILS[spoil](path)
    before = files(home)
    with pytest.raises(InputError, match=rf"{path.name} is (damaged|gone).* backup") as error:
        of(home, key).load(ANN, 99, HERE)
    assert "\n" not in str(error.value) and files(home) == before
    assert equal(of(home, key).load(ANN, 3, HERE), state(20)), "a round that is repeated needs the former one only"


@pytest.mark.parametrize("spoil", ["a bit", "cut", "empty", "gone"])
def test_a_damaged_manifest_is_no_new_user(home: Path, key: Key | None, spoil: str) -> None:
    store = fill(home, key, booked=False)
    (path,) = place(store).glob("manifest.*")
    SPOILS[spoil](path)
    before = files(home)
    for ask in (lambda x: x.load(ANN, 99), lambda x: x.save(ANN, 4, state(4), MADE)):
        with pytest.raises(InputError, match=r"is damaged|no manifest"):
            ask(of(home, key))
    assert files(home) == before


@pytest.mark.parametrize("spoil", ["a bit", "cut", "gone"])
def test_a_store_without_a_whole_head_is_no_new_store(home: Path, key: Key | None, spoil: str) -> None:
    store = fill(home, key, booked=False)
    SPOILS[spoil](store.folder / "store.json")
    before = files(home)
    if spoil == "a bit" and key is None:
        return  # in the clear only its id can be hit, which nothing hangs on
    with pytest.raises(InputError, match=r"store\.json"):
        of(home, key).save(ANN, 4, state(4), MADE)
    assert files(home) == before


def test_a_newer_format_is_not_guessed_at(home: Path) -> None:
    (path,) = place(fill(home, None, booked=False)).glob("manifest.*")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match=r"has format 2, .* use a newer program"):
        of(home, None).load(ANN, 9)


# ---------------------------------------------------------------------- origin
@pytest.mark.parametrize("part", HERE._fields)
def test_what_was_made_for_another_base_tokenizer_or_adapter_is_not_loaded(home: Path, key: Key | None, part: str) -> None:
    store = fill(home, key, booked=False)
    asked = HERE._replace(**{part: "cc" * 32})
    there = getattr(HERE, part)[:12]
    with pytest.raises(
        InputError, match=f"'annabel' of round 3 was made for {part} {there}, and here is {part} {'cc' * 6}; .*(load|give)"
    ):
        store.load(ANN, 9, asked)
    assert equal(store.load(ANN, 9, HERE), state(30))


def test_what_was_made_for_something_unknown_is_not_loaded_either(home: Path) -> None:
    store = fill(home, None, booked=False)
    store.save(ANN, 4, state(4))
    with pytest.raises(InputError, match=r"base \(unknown\)"):
        store.load(ANN, 9, HERE)


# ---------------------------------------------------------------------- seals
def test_without_the_key_neither_names_nor_numbers_can_be_read(home: Path, made_key: Key) -> None:
    store = fill(home, made_key, booked=False)
    with store.held(NAMES):
        found = {str(p.relative_to(home)): p.read_bytes() for p in store.folder.rglob("*") if p.is_file()}
    for path, data in found.items():
        for user in NAMES[:2]:  # the third has three letters, which chance may write
            assert user not in path and user.encode() not in data
        assert b"private" not in data or path.endswith("store.json")
    numbers = state(30)["private/a"].numpy().tobytes()
    assert not any(numbers[:24] in data for data in found.values())
    nonces = [data[: keys.NONCE] for path, data in found.items() if path.endswith((".sealed", "/key"))]
    assert len(nonces) == 3 * 4 == len(set(nonces)), "a fresh nonce for each file"
    places = [place(store, user) for user in NAMES]
    own = {keys.unseal(made_key.secret, (p / KEY).read_bytes(), FORMAT, KEY, p.name) for p in places}
    assert len(own) == 3 and None not in own, "a key for each user"


@pytest.mark.parametrize("how", ["user", "round", "kind"])
def test_a_sealed_file_opens_in_its_own_place_only(home: Path, made_key: Key, how: str) -> None:
    store = fill(home, made_key, booked=False)
    shelf = store.begin()
    data = (place(store) / "000003.sealed").read_bytes()
    asked = {"user": (ANN, 3, "private"), "round": (ANN, 3, "private"), "kind": (ANN, 3, "private")}[how]
    assert shelf.vault.open(place(store), data, *asked) is not None
    other = {"user": ("bob", 3, "private"), "round": (ANN, 2, "private"), "kind": (ANN, 3, "memory")}[how]
    assert shelf.vault.open(place(store), data, *other) is None
    if how == "user":
        shutil.rmtree(place(store, "bob"))
        shutil.copytree(place(store), place(store, "bob"))
        with pytest.raises(InputError, match="damaged or of another store"):
            store.load("bob", 9)


def test_another_key_none_or_one_too_many_is_one_sentence_and_changes_nothing(home: Path, made_key: Key, tmp_path: Path) -> None:
    fill(home / "a", made_key, booked=False)
    fill(home / "b", None, booked=False)
    other, before = keys.make(str(tmp_path / "other.key")), files(home)
    wrong = f"sealed with key {made_key.id}, and .*other.key holds key {other.id}"
    none = f"is sealed with key {made_key.id}; name it: store-key"
    for where, key, said in (("a", other, wrong), ("a", None, none), ("b", other, "in the clear")):
        for ask in (lambda s: s.load(ANN, 9), lambda s: s.save(ANN, 4, state(4))):
            with pytest.raises(InputError, match=said):
                ask(of(home / where, key))
    assert files(home) == before


def test_a_key_that_others_may_read_or_that_is_none_is_refused(made_key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "k"
    os.umask(os.umask(0o022))
    assert keys.read(made_key.where) == made_key and keys.read("") is None
    assert Path(made_key.where).stat().st_mode & 0o777 == 0o600 and made_key.secret.hex() not in repr(made_key)
    path.write_text(made_key.secret.hex())
    path.chmod(0o640)
    with pytest.raises(InputError, match=r"mode 0640.*chmod 600"):
        keys.read(str(path))
    path.chmod(0o600)
    path.write_text("secret")
    with pytest.raises(InputError, match="holds no key: 64 hexadecimal digits"):
        keys.read(str(path))
    with pytest.raises(InputError, match="exists already"):
        keys.make(str(path))
    with pytest.raises(InputError, match="cannot be read: No such file"):
        keys.read(str(tmp_path / "none"))
    with pytest.raises(InputError, match="needs the package 'keyring'"):
        monkeypatch.setitem(__import__("sys").modules, "keyring", None)
        keys.read("keyring:store")


def test_a_key_may_lie_in_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[tuple[str, str], str] = {}
    ring = SimpleNamespace(get_password=lambda s, n: held.get((s, n)), set_password=lambda s, n, v: held.__setitem__((s, n), v))
    monkeypatch.setitem(__import__("sys").modules, "keyring", ring)
    with pytest.raises(InputError, match="holds no 'store'"):
        keys.read("keyring:store")
    made = keys.make("keyring:store")
    assert keys.read("keyring:store") == made and set(held) == {("homing", "store")}
    with pytest.raises(InputError, match="already"):
        keys.make("keyring:store")


# ---------------------------------------------------------------------- files
@pytest.mark.parametrize("umask", [0o000, 0o027, 0o177])
def test_files_and_folders_are_for_their_owner_alone_whatever_the_umask(home: Path, key: Key | None, umask: int) -> None:
    def work() -> None:
        os.umask(umask)
        with fill(home, key, booked=False).held(NAMES):
            os._exit(0)

    home.mkdir()
    child = FORKS.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
    modes = {p.relative_to(home): p.stat().st_mode & 0o777 for p in (home / "nodes").rglob("*")}
    assert len(modes) > 10 and all(mode == (0o700 if (home / p).is_dir() else 0o600) for p, mode in modes.items()), modes


def test_a_full_disk_is_one_sentence_and_what_was_there_stays(home: Path, key: Key | None, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(home, key, booked=False)
    before = files(home)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "write", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device; what was there before stays"):
        store.save(ANN, 4, state(4), MADE)
    assert files(home) == before


# ---------------------------------------------------------------------- locks
@contextmanager
def another() -> Iterator[Callable[..., str]]:
    """Another process, begun before this one holds anything. Called, it asks for users or a store and says what it is told."""
    ours, theirs = FORKS.Pipe()
    child = FORKS.Process(target=wants, args=(theirs,))
    child.start()

    def ask(*asked: Any) -> str:
        ours.send(asked)
        assert ours.poll(60), "it has not answered"
        return ours.recv()

    try:
        yield ask
    finally:
        ours.send(None)
        child.join(20)


def test_two_processes_may_have_different_users_and_never_the_same(home: Path, key: Key | None) -> None:
    store = fill(home, key, booked=False)
    with another() as ask:
        with store.held([ANN]):
            assert ask(store.folder, key, ("bob",), False) == ""
            for users, alone in (((ANN, "bob"), False), ((), True)):
                said = ask(store.folder, key, users, alone)
                assert "in use by another process; wait until it is done" in said and "\n" not in said
        with store.held(alone=True):
            assert "in use" in ask(store.folder, key, ("bob",), False)
        assert ask(store.folder, key, (ANN,), False) == ask(store.folder, key, (), True) == ""
