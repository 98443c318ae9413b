"""What the commands on private stores do, as sentences for a terminal. A folder is a node's home, or a run's."""

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from client.store import backup as backups
from client.store import keys, places, receipts
from client.store import rekey as rekeys
from client.store.manifest import Manifest, Version
from client.store.shelf import Shelf
from configs.errors import InputError, unknown

COLUMNS = ("store", "user", "rounds", "bytes", "base", "adapter", "made", "ledgers")


def listing(at: Path, key: str) -> Table:
    """Users, the rounds whose versions are kept, and what the last of them was made on."""
    table = Table(header_style="bold", box=None)
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    with places.opened(at, keys.read(key)) as shelves:
        for name, shelf in shelves.items():
            for said in shelf.manifests():
                table.add_row(name, said.user, *_kept(said))
    return table


def damage(at: Path, key: str) -> tuple[list[str], str]:
    """A sentence for each damaged file, and one about all."""
    with places.opened(at, keys.read(key)) as shelves:
        looked = [(shelf, place) for shelf in shelves.values() for place in shelf.places()]
        wrong = [sentence for each in looked for sentence in _damage(*each)]
        return wrong, f"{len(looked)} users in {len(shelves)} stores: {len(wrong) or 'nothing'} damaged"


def backup(at: Path, archive: Path, key: str) -> Iterator[str]:
    """Copy everything into one file."""
    yield f"{archive}: {backups.backup(at, archive, keys.read(key))} users, and the ledgers"
    yield "what leaves from now on is not in its ledgers: copy as often as rounds are run"


def restore(archive: Path, at: Path, key: str, old_key: str) -> Iterator[str]:
    """Bring back what a copy holds."""
    begins = not places.ledgers(at)
    done = backups.restore(archive, at, keys.read(key), keys.read(old_key))
    yield f"copy of {done.created}: {done.users} users restored, {done.same} had it already"
    for user in done.forgotten:
        yield f"left out, as forgotten since: {user}"
    if done.ahead:
        yield f"the ledgers here hold {done.ahead} bookings that the copy lacks, and keep them"
    elif done.booked or begins:
        yield f"warning: {done.booked} bookings are the copy's, and none here is later: what left after {done.created} is not counted"


def forget(at: Path, user: str, key: str) -> Iterator[str]:
    """Remove all of a user."""
    yield f"receipt: {receipts.forget(at, user, keys.read(key))}"
    for sentence in receipts.NOT_COVERED:
        yield f"not covered: {sentence}"


def revert(at: Path, user: str, run: str, key: str) -> str:
    """Drop a user's newest version."""
    with places.opened(at, keys.read(key), alone=True) as shelves:
        having = {name: shelf for name, shelf in shelves.items() if (not run or name.endswith(run)) and shelf.manifest(user)}
        if not having:
            raise unknown("user", user, (said.user for shelf in shelves.values() for said in shelf.manifests()))
        if len(having) > 1:
            raise InputError(f"user '{user}' is in {' and '.join(having)}; name one with --run")
        ((name, shelf),) = having.items()
        said = shelf.manifest(user)
        if said is None or len(said.versions) < 2:
            raise InputError(f"user '{user}' has no version in {name} before the last; restore a backup, or forget the user")
        *before, last = said.versions
        shelf.commit(said, before)
    return f"{name}: user '{user}' is back at round {before[-1].round}; round {last.round} is dropped"


def key(where: str) -> Iterator[str]:
    """Make a key."""
    yield f"{where}: key {keys.make(where).id}"
    yield f"in the node config: store-key={where}; for what is there already: store rekey {where}"


def rekey(at: Path, new: str, old: str) -> Iterator[str]:
    """Keep everything under another key; "": in the clear."""
    before, after = keys.read(old), keys.read(new)
    for name, folder in places.stores(at).items():
        users = rekeys.rekey(folder, before, after)
        yield f"{name}: {users} users {f'sealed with key {after.id}' if after else 'in the clear'}"


def _kept(said: Manifest) -> tuple[str, ...]:
    size = sum(file.size for version in said.versions for file in version.files.values())
    return ",".join(str(v.round) for v in said.versions), f"{size:,}", *(_made(said.versions[-1]) if said.versions else ())


def _made(last: Version) -> tuple[str, ...]:
    made = last.made
    return made.origin.base[:12], made.origin.adapter[:12], last.created, ", ".join(made.ledgers)


def _damage(shelf: Shelf, place: Path) -> list[str]:
    try:
        said = shelf.read_manifest(place)
    except InputError as error:
        return [str(error)]
    return list(shelf.damage(said)) if said else []
