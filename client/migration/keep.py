"""A store for another base, made of an old one that stays as it is. User by user: whoever is there already is not made again."""

from collections.abc import Callable, Iterator, Sequence

from client.private import PrivateStore
from client.store.manifest import PRIVATE, Made, Origin, Version
from configs.errors import InputError
from strategies.tree import State

CHUNK = 32  # users whose states are in memory at one time
Moving = Callable[[Sequence[str], Sequence[State]], Sequence[State]]  # (users, what each has) -> what each has on the new base


def remake(old: PrivateStore, new: PrivateStore, before: int, there: Origin, made: Made, how: str, move: Moving) -> Iterator[int]:
    """Give ``new`` what ``old`` has of each user from before a round, and yield how many users that was, chunk by chunk.

    ``there``: what the old store's versions must have been made on. ``made``: the new origin and the shared adapter there. Everything
    else of a version stays: round, ledgers, other kinds of state. A user counts at once, so that a kill costs one chunk at most.
    """
    users = [user for user, version in _versions(old, before) if _there(new, user, before, how, version) is None]
    for first in range(0, len(users), CHUNK):
        chunk = users[first : first + CHUNK]
        parts = [old.parts(user, before, there) for user in chunk]
        moved = move(chunk, [each[PRIVATE] for each in parts])
        found = dict(_versions(old, before, chunk))
        for user, each, state in zip(chunk, parts, moved, strict=True):
            new.save_parts(user, found[user].round, {**each, PRIVATE: state}, _made(made, found[user], how))
        yield len(chunk)


def _there(new: PrivateStore, user: str, before: int, how: str, version: Version) -> Version | None:
    """What the new store has of a user already. Raises `InputError` where that was made of something else."""
    shelf = new.shelf()
    known = shelf.manifest(user) if shelf else None
    found = known.newest(before) if known else None
    if found and found.made.migrated[-1:] != _chain(version, how)[-1:]:
        raise InputError(
            f"{new.folder} holds of user '{user}' what was made of another version or by another migrator; remove that folder"
        )
    return found


def _versions(store: PrivateStore, before: int, users: Sequence[str] | None = None) -> Iterator[tuple[str, Version]]:
    shelf = store.shelf()
    for said in shelf.manifests() if shelf else ():
        version = said.newest(before)
        if version is not None and PRIVATE in version.files and (users is None or said.user in users):
            yield said.user, version


def _made(made: Made, version: Version, how: str) -> Made:
    return made._replace(after=version.made.after, ledgers=version.made.ledgers, migrated=_chain(version, how))


def _chain(version: Version, how: str) -> tuple[str, ...]:
    return (*version.made.migrated, f"{how}:{version.made.origin.base}:{version.files[PRIVATE].digest}")
