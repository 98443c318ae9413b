"""What a user has in a store, said in one file: the versions that count, what each was made on, and the digests of its files."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from configs.errors import InputError

FORMAT = 1
PRIVATE = "private"  # the kind that training keeps


class Origin(NamedTuple):
    """What a private adapter makes sense on, each as the SHA-256 of `client.store.origin`; "" is unknown."""

    base: str = ""
    tokenizer: str = ""
    adapter: str = ""


class Made(NamedTuple):
    """How a version came about."""

    origin: Origin = Origin()
    after: int = 0  # the round that made the shared adapter it was trained with; 0: its start
    shared: str = ""  # SHA-256 of that adapter
    ledgers: tuple[str, ...] = ()  # what its training was booked in, each as FILE#RUN
    migrated: tuple[str, ...] = ()  # the migrators that brought it from base to base, each as NAME:BASE:SHA-256 of what it was made of


class File(NamedTuple):
    """One file of a version."""

    name: str
    size: int  # bytes on disk
    digest: str  # SHA-256 of these


@dataclass(frozen=True)
class Version:
    """What a user has after a round: an adapter, and whatever else is kept of them, by kind."""

    round: int
    created: str  # UTC, to the second
    made: Made
    files: Mapping[str, File]


@dataclass(frozen=True)
class Manifest:
    """All that counts of one user."""

    user: str
    first: int = 0  # the first round that was ever kept; 0: none yet
    versions: tuple[Version, ...] = ()  # by round
    number: int = 0  # counts the manifests of a user: the last one holds

    def newest(self, before: int) -> Version | None:
        """The newest version of a round earlier than ``before``."""
        return max((v for v in self.versions if v.round < before), key=lambda v: v.round, default=None)

    def names(self) -> set[str]:
        """The files that count."""
        return {file.name for version in self.versions for file in version.files.values()}

    def having(self, versions: Iterable[Version]) -> "Manifest":
        """The manifest that comes next, with these versions."""
        found = tuple(sorted(versions, key=lambda v: v.round))
        first = min((n for n in (self.first, *(v.round for v in found)) if n), default=0)
        return Manifest(self.user, first, found, self.number + 1)


def file(name: str, data: bytes) -> File:
    """What a manifest says of a file."""
    return File(name, len(data), hashlib.sha256(data).hexdigest())


def version(round_: int, made: Made, files: Mapping[str, File]) -> Version:
    """A version that is made now."""
    return Version(round_, now(), made, files)


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def dump(manifest: Manifest) -> bytes:
    """Write a manifest, with a digest of itself."""
    said = {
        "format": FORMAT, "number": manifest.number, "user": manifest.user, "first": manifest.first,
        "versions": [_said(v) for v in manifest.versions],
    }  # fmt: skip
    return json.dumps({**said, "sha256": _digest(said)}, indent=1).encode()


def load(data: bytes) -> Manifest:
    """Read a manifest. Raises `ValueError` for anything but what `dump` wrote, `InputError` for a newer format."""
    try:
        said: Any = json.loads(data)
        written = said.pop("sha256")
        if said["format"] > FORMAT:
            raise InputError(f"it has format {said['format']}, and this program knows formats up to {FORMAT}; use a newer program")
        if written != _digest(said):
            raise ValueError("its digest is another")
        return Manifest(said["user"], said["first"], tuple(map(_version, said["versions"])), said["number"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks {error}") from None


def refuse(said: str, there: Origin, here: Origin) -> None:
    """Raise `InputError` where what was made on ``there`` is to be used on ``here``. ``said``: what it is."""
    words = {
        "base": "load the base that it was made on (model.name), bring it to this one by 'migrate'",
        "tokenizer": "load the tokenizer that it was made with (model.name), bring it to this one by 'migrate'",
        "adapter": "give the adapter's settings that it was made with (private, scheme)",
    }
    for part, made, loaded in zip(Origin._fields, there, here, strict=True):
        if made != loaded:
            raise InputError(
                f"{said} was made for {part} {made[:12] or '(unknown)'}, and here is {part} {loaded[:12]}; {words[part]}, or begin "
                "another run"
            )


def _said(version_: Version) -> dict[str, Any]:
    made = version_.made
    return {
        "round": version_.round, "created": version_.created, **made.origin._asdict(),
        "shared": {"round": made.after, "sha256": made.shared}, "ledgers": list(made.ledgers),
        **({"migrated": list(made.migrated)} if made.migrated else {}),
        "files": {kind: found._asdict() for kind, found in version_.files.items()},
    }  # fmt: skip


def _version(said: Any) -> Version:
    origin = Origin(*(said[name] for name in Origin._fields))
    made = Made(origin, said["shared"]["round"], said["shared"]["sha256"], tuple(said["ledgers"]),
                tuple(said.get("migrated", ())))  # fmt: skip
    return Version(said["round"], said["created"], made, {kind: File(**found) for kind, found in said["files"].items()})


def _digest(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
