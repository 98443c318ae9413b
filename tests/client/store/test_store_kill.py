"""A process that is killed before any of its calls that change the disk leaves what was committed, and the same call again ends it."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.private import PrivateStore
from client.store import keys
from client.store.keys import Key
from client.store.receipts import forget
from client.store.rekey import rekey
from configs.errors import InputError
from tests.client.store.kept import HERE, MADE, NAMES, RUN, equal, fill, state

CALLS = ("open", "write", "fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir", "chmod", "fchmod")
ANN = NAMES[0]


def killed(work: Callable[[], Any], at: int) -> bool:
    """Do it in a process that kills itself before its call number ``at`` to the system; whether it came so far."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = at

    def mortal(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **rest: Any) -> Any:
            nonlocal left
            reads = name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            left -= not reads
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "write" and left == 0:
                args = (args[0], args[1][: len(args[1]) // 2])  # the next kill finds half a file
            return call(*args, **rest)

        return wrapped

    for name in CALLS:
        setattr(os, name, mortal(getattr(os, name), name))
    try:
        work()
    finally:
        os._exit(0)


def copied(folder: Path, at: int) -> Path:
    """Another copy of the home that is there whole."""
    return Path(shutil.copytree(folder / "whole", folder / str(at)))


def store_of(home: Path, key: Key | None) -> PrivateStore:
    return PrivateStore(home / "nodes" / RUN, key)


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize("round_", [3, 2], ids=["new", "repeated"])
def test_a_save_is_wholly_there_or_not_at_all(tmp_path: Path, key: Key | None, flush: bool, round_: int) -> None:
    ends, at = set(), 0
    fill(tmp_path / "whole", key, 2, booked=False)
    for at in range(200):
        home = copied(tmp_path, at)
        died = killed(lambda home=home: PrivateStore(home / "nodes" / RUN, key, flush).save(ANN, round_, state(30), MADE), at)
        found = store_of(home, key).load(ANN, 9, HERE)
        there = equal(found, state(30))
        ends.add(there)
        assert there or equal(found, state(20))
        assert equal(store_of(home, key).load(ANN, round_, HERE), state(10 * round_ - 10))
        assert equal(store_of(home, key).load("bob", 9), state(21))
        store_of(home, key).save(ANN, round_, state(30), MADE)
        shelf = store_of(home, key).begin()
        assert equal(store_of(home, key).load(ANN, 9), state(30))
        assert len(list(shelf.place(ANN).iterdir())) == 3 + (key is not None), "nothing is left of the killed one"
        if not died:
            break
    assert ends == {False, True} and at > 6 + 3 * flush


def test_a_first_save_is_wholly_there_or_the_user_is_new(tmp_path: Path, key: Key | None) -> None:
    at = 0
    for at in range(200):
        home = tmp_path / str(at)
        died = killed(lambda home=home: store_of(home, key).save(ANN, 3, state(30), MADE), at)
        found = store_of(home, key).load(ANN, 9, HERE)
        assert found is None or equal(found, state(30))
        store_of(home, key).save(ANN, 3, state(31), MADE)
        assert equal(store_of(home, key).load(ANN, 9, HERE), state(31))
        if not died:
            break
    assert at > 15


@pytest.mark.parametrize("way", ["seal", "again", "open"])
def test_a_rekey_that_is_cut_off_loses_nothing_is_said_and_goes_on(tmp_path: Path, made_key: Key, way: str) -> None:
    other = keys.make(str(tmp_path / "other.key"))
    old, new = {"seal": (None, made_key), "again": (made_key, other), "open": (made_key, None)}[way]
    said = 0
    fill(tmp_path / "whole", old, 2, booked=False)
    for at in range(0, 400, 13):
        home = copied(tmp_path, at)
        folder = home / "nodes" / RUN
        died = killed(lambda folder=folder: rekey(folder, old, new), at)
        for key in (old, new):
            try:
                assert equal(PrivateStore(folder, key).load(ANN, 9, HERE), state(20))
            except InputError as error:
                said += "was cut off; give it again" in str(error)
        if (folder / "store.next.json").exists():
            rekey(folder, old, new)
        elif died:
            try:
                rekey(folder, old, new)
            except InputError as error:
                assert "already" in str(error)
        assert all(equal(PrivateStore(folder, new).load(user, 9, HERE), state(20 + i)) for i, user in enumerate(NAMES))
        assert all(equal(PrivateStore(folder, new).load(user, 2, HERE), state(10 + i)) for i, user in enumerate(NAMES))
        if not died:
            break
    assert said > 2


def test_a_user_who_is_forgotten_twice_because_of_a_kill_is_gone(tmp_path: Path, key: Key | None) -> None:
    fill(tmp_path / "whole", key, 2)
    at = 0
    for at in range(0, 200, 2):
        home = copied(tmp_path, at)
        died = killed(lambda home=home: forget(home, ANN, key), at)
        receipt = forget(home, ANN, key)
        assert '"found_after": []' in receipt.read_text()
        assert store_of(home, key).load(ANN, 9) is None and equal(store_of(home, key).load("bob", 9), state(21))
        assert not list((home / "nodes").rglob("*.gone"))
        if not died:
            break
    assert at > 8
