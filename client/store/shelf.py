"""Users' folders under one vault. A version counts from the moment at which the manifest that names its files is renamed into place.

Before that moment a kill leaves files that nobody names, which the next write takes away; after it, an older version's.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from client.store import disk, manifest
from client.store.manifest import PRIVATE, File, Made, Manifest, Version
from client.store.vault import KEY, MANIFEST, Vault
from configs.errors import InputError

TRIES = 100  # of a reader who always comes just after a writer


@dataclass(frozen=True)
class Shelf:
    """The users' folders."""

    folder: Path
    vault: Vault
    flush: bool = True  # as in `client.store.disk`

    def place(self, user: str) -> Path:
        """A user's folder."""
        return self.folder / self.vault.folder(user)

    def manifest(self, user: str) -> Manifest | None:
        """What a user has; None where they have nothing. Raises `InputError` for a damaged one."""
        return self.read_manifest(self.place(user))

    def read_manifest(self, place: Path) -> Manifest | None:
        """The manifest of a user's folder: the last one by number."""
        for _ in range(TRIES):
            if (path := max(place.glob(f"{MANIFEST}.*"), key=_number, default=None)) is None:
                _refuse_headless(place)
                return None
            with suppress(FileNotFoundError):  # a save has put the next one in its place
                return self._checked(path, path.read_bytes())
        raise InputError(f"{place} is written to all the time; stop what does so")

    def _checked(self, path: Path, data: bytes) -> Manifest:
        found = self.vault.open(path.parent, data, MANIFEST, _number(path))
        try:
            if found is None:
                raise ValueError("its seal is broken")
            said = manifest.load(found)
            if said.number != _number(path) or self.vault.folder(said.user) != path.parent.name:
                raise ValueError(f"it is number {said.number} of user '{said.user}', whose place is another")
        except InputError as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}): nothing of it is used; restore a backup, or forget the user") from None
        return said

    def places(self) -> list[Path]:
        """All users' folders, sorted."""
        return sorted(p for p in self.folder.glob("[!.]*") if p.is_dir()) if self.folder.is_dir() else []

    def manifests(self) -> Iterator[Manifest]:
        """What every user has."""
        yield from (found for place in self.places() if (found := self.read_manifest(place)) is not None)

    def read(self, user: str, version: Version, kind: str = PRIVATE) -> bytes:
        """One file of a version. Raises `InputError` where it is not what was written, `FileNotFoundError` where it is gone."""
        place, said = self.place(user), version.files[kind]
        data = (place / said.name).read_bytes()
        found = self.vault.open(place, data, user, version.round, kind) if manifest.file(said.name, data) == said else None
        if found is None:
            raise InputError(
                f"{place / said.name} is damaged ({kind} of user '{user}', round {version.round}) and nothing is used in its "
                f"place; restore a backup, or go back to the version before by 'store revert'"
            )
        return found

    def damage(self, said: Manifest) -> Iterator[str]:
        """A sentence for each file of a user that is not what was written."""
        for version in said.versions:
            for kind, file in version.files.items():
                try:
                    self.read(said.user, version, kind)
                except InputError as error:
                    yield str(error)
                except FileNotFoundError:
                    yield f"{self.place(said.user) / file.name} is gone, which the manifest beside it names; restore a backup"

    def broken(self, place: Path) -> bool:
        """Whether a user's manifest cannot be read."""
        try:
            self.read_manifest(place)
        except InputError:
            return True
        return False

    def last(self, place: Path) -> int:
        """The number of a user's last manifest, readable or not; -1 where there is none."""
        return max(map(_number, place.glob(f"{MANIFEST}.*")), default=-1)

    def put(self, user: str, round_: int, parts: Mapping[str, bytes], made: Made, keep: int) -> None:
        """Add a version, in place of one of the same round; of those of earlier rounds, the newest ``keep`` stay."""
        known = self.begin(user)
        others = [v for v in known.versions if v.round != round_]
        earlier = [v for v in others if v.round < round_]
        stay = [v for v in others if v not in earlier[: max(0, len(earlier) - keep)]]
        self.commit(known, [*stay, manifest.version(round_, made, self.write(known, round_, parts))])

    def write(self, known: Manifest, round_: int, parts: Mapping[str, bytes]) -> dict[str, File]:
        """Write files that do not count yet, under names that nothing has which counts."""
        place, found = self.place(known.user), {}
        for kind, data in parts.items():
            name, sealed = self._free(known, round_, kind), self.vault.close(place, data, known.user, round_, kind)
            disk.write(place / name, sealed, self.flush)
            found[kind] = manifest.file(name, sealed)
        return found

    def commit(self, known: Manifest, versions: list[Version]) -> Manifest:
        """Let these versions count, and take away all files of the user that do not."""
        after, place = known.having(versions), self.place(known.user)
        self._write_manifest(place, after)
        if self.flush:
            disk.settle(place)
        stay = {*after.names(), KEY, self.name(after)}
        for path in place.iterdir():
            if path.name not in stay:
                path.unlink(missing_ok=True)
        return after

    def begin(self, user: str) -> Manifest:
        """What a user has, whose folder is then there."""
        known, place = self.manifest(user), self.place(user)
        if known is None:
            known = Manifest(user)
            disk.make(place)
            self.vault.begin(place, self.flush)
            self._write_manifest(place, known)
            if self.flush:
                disk.settle(self.folder)
        return known

    def _write_manifest(self, place: Path, said: Manifest) -> None:
        """Under a name of its own: to replace one by renaming makes some file systems wait for the disk."""
        disk.write(place / self.name(said), self.vault.close(place, manifest.dump(said), MANIFEST, said.number), self.flush)

    def name(self, said: Manifest) -> str:
        """The file of a manifest."""
        return f"{MANIFEST}.{said.number}{self.vault.words}"

    def _free(self, known: Manifest, round_: int, kind: str) -> str:
        stem, taken, nth = f"{round_:06d}" + ("" if kind == PRIVATE else f"-{kind}"), known.names(), 0
        name = f"{stem}{self.vault.suffix}"
        while name in taken:
            nth += 1
            name = f"{stem}.{nth}{self.vault.suffix}"
        return name


def transfer(user: str, source: Shelf, target: Shelf) -> None:
    """Give a user in ``target`` the versions that they have in ``source``, and no others. Times and files stay as they were made."""
    said = source.manifest(user)
    if said is None:
        return
    known = target.begin(user)
    written: list[Version] = []
    for old in said.versions:
        parts = {kind: source.read(user, old, kind) for kind in old.files}
        files = target.write(known.having([*known.versions, *written]), old.round, parts)
        written.append(Version(old.round, old.created, old.made, files))
    target.commit(replace(known, first=said.first), written)


def _number(path: Path) -> int:
    number = path.name.split(".")[1]
    return int(number) if number.isdigit() else -1


def _refuse_headless(place: Path) -> None:
    if any(place.glob("[0-9]*")):
        raise InputError(
            f"{place} holds states and no manifest: an older program wrote them, or it is lost; restore a backup, or forget the user"
        )
