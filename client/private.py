"""Where a node keeps what never leaves it: of each user, the versions that rounds have made, and a manifest that says which count.

A round is only final when the server has committed it. Until then the version of the round before stays, so that a run that was stopped
anywhere resumes from what it had, and a round that is repeated starts from where it started the first time. What is damaged, or was
made on another base, is said to be so and never replaced by anything. ``docs/store.md`` has the layout and the promises.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, ReadWriteLock, Timeout

from client.store import disk, manifest, origin
from client.store.keys import Key
from client.store.manifest import PRIVATE, Made, Origin
from client.store.shelf import Shelf
from client.store.vault import HEAD, NEXT, Head, folder_name, head
from configs.errors import InputError
from strategies.tree import State

__all__ = ["UNKNOWN", "PrivateStore", "folder_name"]
LOCKS, UNKNOWN = ".locks", Made()


class PrivateStore:
    """What users have, under one folder.

    ``key``: a store that begins is sealed with it; one that is there must be. ``flush=False``: a loss of power may cost what a kill
    may not.
    """

    def __init__(self, folder: Path, key: Key | None = None, flush: bool = True) -> None:
        self.folder, self.key, self.flush = folder, key, flush
        self._shelf: Shelf | None = None

    # ------------------------------------------------------------------ training
    def load(self, user: str, before: int, here: Origin | None = None) -> State | None:
        """The user's newest private state of a round earlier than ``before``; None if they have had none.

        Raises `InputError` where it was made on something else than ``here`` (None: not asked), is damaged, or is no longer there.
        """
        return self.parts(user, before, here).get(PRIVATE)

    def parts(self, user: str, before: int, here: Origin | None = None) -> dict[str, State]:
        """All that is kept of a user, by kind, as `load`; empty if they have had nothing."""
        shelf = self.shelf()
        for last in (False, True):
            known = shelf.manifest(user) if shelf else None
            if shelf is None or known is None:
                return {}
            found = known.newest(before)
            if found is None:
                _refuse_lost(known, before, self.folder)
                return {}
            if here is not None:
                manifest.refuse(f"the private adapter of user '{user}' of round {found.round}", found.made.origin, here)
            try:
                return {kind: origin.decoded(shelf.read(user, found, kind)) for kind in found.files}
            except FileNotFoundError as error:  # a save may have taken it away since the manifest was read
                if last:
                    raise InputError(f"{error.filename} is gone, which the manifest beside it names; restore a backup") from None
        raise AssertionError

    def save(self, user: str, round_: int, state: State, made: Made = UNKNOWN) -> None:
        """Keep the private state that a user has after a round, and drop those that no resume can ask for any more."""
        self.save_parts(user, round_, {PRIVATE: state}, made)

    def save_parts(self, user: str, round_: int, parts: Mapping[str, State], made: Made = UNKNOWN) -> None:
        """As `save`, of all that is kept of a user, by kind. All of it counts at once."""
        with disk.told(self.folder):
            self.begin().put(user, round_, {kind: origin.encoded(state) for kind, state in parts.items()}, made, keep=1)

    def forget_after(self, round_: int) -> None:
        """Drop what rounds later than the last committed one have left behind."""
        shelf = self.shelf()
        for known in list(shelf.manifests()) if shelf else ():
            stay = [v for v in known.versions if v.round <= round_]
            if shelf and not stay and known.first > round_:
                disk.remove(shelf.place(known.user))
            elif shelf and len(stay) < len(known.versions):
                shelf.commit(known, stay)

    # ------------------------------------------------------------------ the store as a whole
    def shelf(self) -> Shelf | None:
        """The users' folders; None where nothing was ever kept. Raises `InputError` for another key, or what is no store."""
        if self._shelf is None:
            if (self.folder / NEXT).exists():
                raise InputError(f"a 'store rekey' of {self.folder} was cut off; give it again, with the same keys")
            said = head(self.folder)
            if said is None:
                _refuse_headless(self.folder)
                return None
            self._shelf = Shelf(self.folder, said.vault(self.folder, self.key), self.flush)
        return self._shelf

    def begin(self) -> Shelf:
        """The users' folders, of a store that begins where there is none."""
        found = self.shelf()
        if found is None:
            disk.make(self.folder)
            disk.create(self.folder / HEAD, Head.new(self.key).bytes())
            found = self.shelf()
        assert found is not None
        return found

    @contextmanager
    def held(self, users: Iterable[str] = (), alone: bool = False) -> Iterator[None]:
        """Keep these users to this process, or with ``alone`` the whole store. Raises `InputError` where another process has them."""
        disk.make(self.folder / LOCKS)
        with ExitStack() as stack:
            try:
                whole = ReadWriteLock(self.folder / LOCKS / "store", is_singleton=False)
                stack.callback(whole.close)
                (whole.acquire_write if alone else whole.acquire_read)(0)
                stack.callback(whole.release)
                self._shelf = None  # it may have been another before
                for name in sorted(self.begin().vault.folder(user) for user in set(users)):
                    stack.enter_context(FileLock(self.folder / LOCKS / name, timeout=0, mode=0o600))
            except Timeout:
                what = "" if alone else ", or these users of it,"
                raise InputError(f"{self.folder}{what} is in use by another process; wait until it is done, or stop it") from None
            yield


def _refuse_lost(known: manifest.Manifest, before: int, folder: Path) -> None:
    if 0 < known.first < before:
        rounds = ", ".join(str(v.round) for v in known.versions) or "none"
        raise InputError(
            f"what user '{known.user}' had before round {before} is no longer in {folder}, which holds of them: {rounds}; they do not "
            "begin anew: restore a backup of that time, or forget the user"
        )


def _refuse_headless(folder: Path) -> None:
    if any(path.is_dir() for path in folder.glob("[!.]*")):
        raise InputError(f"{folder} holds folders and no {HEAD}: an older program wrote it, or the file was removed; restore a backup")
