"""A store for another base: what it holds, where it came from, and that a second try makes nothing twice."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from client.migration import keep
from client.private import PrivateStore
from client.store.manifest import Made, Origin
from configs.errors import InputError
from strategies.tree import State
from tests.client.store.kept import HERE, MADE, NAMES, equal, files, state

THERE = Origin("be" * 32, HERE.tokenizer, HERE.adapter)


def doubled(_users: Sequence[str], states: Sequence[State]) -> list[State]:
    """Stands for a migration."""
    return [{name: 2 * value for name, value in each.items()} for each in states]


@pytest.fixture
def old(tmp_path: Path) -> PrivateStore:
    """Three users, two versions of each, and something beside their adapters."""
    store = PrivateStore(tmp_path / "old", flush=False)
    for round_ in (3, 4):
        for at, user in enumerate(NAMES):
            store.save_parts(user, round_, {"private": state(10 * round_ + at), "memory": state(at, 4)}, MADE)
    return store


def moved(old: PrivateStore, new: PrivateStore, how: str = "carry", before: int = 5) -> int:
    """Migrate everybody."""
    return sum(keep.remake(old, new, before, HERE, Made(THERE, shared="5b" * 32), how, doubled))


def test_every_version_is_moved_and_says_by_what_and_of_which_file(old: PrivateStore, tmp_path: Path) -> None:
    before, new = files(old.folder), PrivateStore(tmp_path / "new", flush=False)
    assert moved(old, new) == len(NAMES) and files(old.folder) == before
    for at, user in enumerate(NAMES):
        for round_ in (3, 4):
            there = new.parts(user, round_ + 1, THERE)
            assert equal(there["private"], doubled([user], [state(10 * round_ + at)])[0]) and equal(there["memory"], state(at, 4))
        said, was = (store.begin().manifest(user) for store in (new, old))
        assert said and was
        for here, source in zip(said.versions, was.versions, strict=True):
            assert here.made.migrated == (f"carry:{HERE.base}:{source.files['private'].digest}",)
            assert here.made.ledgers == MADE.ledgers and here.made.after == MADE.after and here.made.shared == "5b" * 32
    with pytest.raises(
        InputError, match=r"was made for base bebebebebebe, and here is base babababababa; .* bring it to this one by 'migrate'"
    ):
        new.load(NAMES[0], 5, HERE)


def test_a_second_try_makes_only_what_is_missing_and_refuses_what_another_migrator_made(old: PrivateStore, tmp_path: Path) -> None:
    new = PrivateStore(tmp_path / "new", flush=False)
    next(iter(keep.remake(old, new, 4, HERE, Made(THERE), "carry", doubled)))  # cut off: only the older versions are there
    assert moved(old, new) == len(NAMES)
    before = files(new.folder)
    assert moved(old, new) == 0 and files(new.folder) == before
    with pytest.raises(InputError, match="what was made of something else"):
        moved(old, new, "project")


def test_a_chain_of_bases_is_kept(old: PrivateStore, tmp_path: Path) -> None:
    once, twice = (PrivateStore(tmp_path / name, flush=False) for name in ("once", "twice"))
    moved(old, once)
    assert sum(keep.remake(once, twice, 5, THERE, Made(HERE), "project", doubled)) == len(NAMES)
    said = twice.begin().manifest(NAMES[0])
    assert said and [x.partition(":")[0] for x in said.versions[-1].made.migrated] == ["carry", "project"]


def test_what_was_made_on_another_base_than_the_run_says_is_refused(old: PrivateStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was made for base babababababa"):
        list(keep.remake(old, PrivateStore(tmp_path / "new", flush=False), 5, THERE, Made(HERE), "carry", doubled))
    assert not (tmp_path / "new").exists()
