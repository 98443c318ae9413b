"""The commands on private stores, as a person types them on the store of a run that has ended."""

import shutil
from pathlib import Path

import pytest

from client.private import PrivateStore
from tests.simulations.command import call, tree
from tests.simulations.conftest import World


@pytest.fixture
def run(world: World, tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return Path(shutil.copytree(world.run, tmp_path / "run"))


def test_a_store_is_listed_checked_copied_sealed_brought_back_and_a_user_of_it_forgotten(run: Path, tmp_path: Path) -> None:
    at, key = ("--home", run), tmp_path / "store.key"
    listed = call("store", "list", *at)
    assert listed.code == 0 and "u1" in listed.out and ",4" in listed.out
    assert "nothing damaged" in call("store", "verify", *at).out
    assert "6 users" in call("store", "backup", tmp_path / "a.tar", *at).out
    assert f"store-key={key}" in call("store", "key", key).out
    assert "sealed with key" in call("store", "rekey", key, *at).out
    said = call("store", "list", *at)
    assert (said.code, said.err.count("\n")) == (2, 1) and "name it: store-key in the node config, or --key" in said.err
    assert "u1" in call("store", "list", *at, "--key", key).out
    forgot = call("store", "forget", "u1", *at, "--key", key)
    assert forgot.code == 0 and "receipt: " in forgot.out and "not covered: copies" in forgot.out
    assert "u1" not in call("store", "list", *at, "--key", key).out
    back = call("store", "restore", tmp_path / "a.tar", "--home", tmp_path / "new")
    assert back.code == 0 and "6 users restored" in back.out and "warning: " in back.out
    assert PrivateStore(tmp_path / "new" / "private").load("u1", 99) is not None


def test_damage_is_named_with_exit_code_1_and_the_version_before_is_used_when_asked(run: Path) -> None:
    store = PrivateStore(run / "private")
    path = max(store.begin().place("u1").glob("[0-9]*"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    said = call("store", "verify", "--home", run)
    assert said.code == 1 and f"damaged: {path} is damaged" in said.out and "1 damaged" in said.out
    assert "is back at round" in call("store", "revert", "u1", "--home", run).out
    assert "nothing damaged" in call("store", "verify", "--home", run).out


BAD = (
    (("list", "--home", "nowhere"), "nowhere holds no private store"), (("forget", "u11"), "did you mean 'u1'?"),
    (("restore", "none.tar"), "none.tar"), (("rekey",), "a new key, or --open"), (("verify", "--key", "none.key"), "cannot be"),
    (("revert", "u11"), "unknown user 'u11'"), (("lst",), "unknown command 'lst' (did you mean 'list'?)"),
    (("backup", "none/a.tar"), "its folder does not exist"), (("key", "none/k"), "its folder does not exist"),
)  # fmt: skip


@pytest.mark.parametrize(("words", "said"), BAD)
def test_a_mistake_is_one_sentence_and_changes_nothing(run: Path, here: Path, words: tuple[str, ...], said: str) -> None:
    at = ("--home", run) if words[0] not in ("lst", "key") and "--home" not in words else ()
    before = tree(run / "private", here)
    found = call("store", *words, *at)
    assert found.code == 2 and said in found.err and found.err.count("\n") == 1 and found.out == ""
    assert {path: was for path, was in tree(run / "private", here).items() if ".locks" not in path} == {
        path: was for path, was in before.items() if ".locks" not in path
    }
