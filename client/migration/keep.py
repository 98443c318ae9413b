"""A store for another base, made of an old one that stays as it is. User by user: whoever is there already is not made again."""

from collections.abc import Callable, Iterator, Sequence

from client.private import PrivateStore
from client.store.manifest import PRIVATE, Made, Manifest, Origin, Version
from configs.errors import InputError
from strategies.tree import State

CHUNK = 32  # users whose states are in memory at one time
Moving = Callable[[Sequence[str], Sequence[State]], Sequence[State]]  # (users, what each has) -> what each has on the new base


def remake(old: PrivateStore, new: PrivateStore, before: int, there: Origin, made: Made, how: str, move: Moving) -> Iterator[int]:
    """Give ``new`` what ``old`` has of each user from before a round, and yield how many users that was, chunk by chunk.

    ``there``: what the old store's versions must have been made on. ``made``: the new origin and the shared adapter there. Everything
    else of a version stays: round, ledgers, other kinds of state. A version counts at once, so that a kill costs one chunk at most.
    Raises `InputError` where ``new`` holds what was made of something else.
    """
    shelf = old.shelf()
    known = [said for said in shelf.manifests() if _versions(said, before)] if shelf else []
    todo = [said for said in known if not _done(new, said, before, how)]
    for first in range(0, len(todo), CHUNK):
        some = todo[first : first + CHUNK]
        pairs = [(said.user, version) for said in some for version in _versions(said, before)]
        parts = [old.parts(user, version.round + 1, there) for user, version in pairs]
        moved = move([user for user, _ in pairs], [each[PRIVATE] for each in parts])
        for (user, version), each, state in zip(pairs, parts, moved, strict=True):
            kept = made._replace(after=version.made.after, ledgers=version.made.ledgers, migrated=_chain(version, how))
            new.save_parts(user, version.round, {**each, PRIVATE: state}, kept)
        yield len(some)


def newest(old: PrivateStore, before: int, there: Origin) -> Iterator[State]:
    """What every user has from before a round, in the order of their folders."""
    shelf = old.shelf()
    for said in shelf.manifests() if shelf else ():
        if _versions(said, before):
            yield old.parts(said.user, before, there)[PRIVATE]


def _versions(said: Manifest, before: int) -> list[Version]:
    """What a user has from before a round, by round."""
    return [v for v in said.versions if v.round < before and PRIVATE in v.files]


def _done(new: PrivateStore, said: Manifest, before: int, how: str) -> bool:
    """Whether the new store has a user's newest version."""
    shelf = new.shelf()
    there = shelf.manifest(said.user) if shelf else None
    chains = [_chain(version, how) for version in _versions(said, before)]
    found = [version.made.migrated for version in there.versions] if there else []
    if not set(found) <= set(chains):
        raise InputError(f"{new.folder} holds of user '{said.user}' what was made of something else; remove that folder")
    return chains[-1] in found


def _chain(version: Version, how: str) -> tuple[str, ...]:
    """The migrators that a version will have come through."""
    return (*version.made.migrated, f"{how}:{version.made.origin.base}:{version.files[PRIVATE].digest}")
