"""`show privacy`: the ledgers that a person's word stands for, a run's folder, a folder of ledgers or one file, and what they hold."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from configs.errors import InputError, close, did_you_mean
from configs.scenario import Scenario, load
from server.report import privacy
from server.report.promise import FILES, Account, account, accounts, deployed, promise, spent
from simulations import folders
from strategies.privacy.joint import WHAT
from strategies.privacy.ledger import JOINT, Ledger


def show(words: Sequence[str], users: int = 0) -> Iterator[str | Table]:
    """Both guarantees of a run or ledger, as lines and tables for the terminal; ``words``: where it is, then ``key=value`` settings."""
    place, overrides = place_of(words)
    scenario, found = read(place, overrides)
    flower = deployed(place) if scenario else None
    if scenario and flower:
        yield promise(scenario, spent(scenario, place), flower)
    elif scenario and not found:
        yield _unbooked(place) if scenario.privacy.promises else promise(scenario, {})
    if len(found) > 1:
        yield privacy.TWO
    for one in found:
        yield privacy.words_table(one, scenario)
        if len(one.bookings) > 1 or scenario is None:
            yield privacy.runs_table(one)
        if users:
            yield privacy.users_table(one, users)


def place_of(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The run's folder or ledger that is named first, and the settings after it. Raises `InputError` where there is none."""
    if not words or ("=" in words[0] and not Path(words[0]).exists()):
        raise InputError("show privacy needs a run's folder or a ledger's file, e.g. show privacy runs/demo-0a1b2c3d4e5f")
    place = Path(words[0])
    if not place.exists():
        beside = {str(x.parent) for x in place.parent.glob("*/scenario.yaml")} | {str(x) for x in place.parent.glob("*.sqlite")}
        near = did_you_mean(close(words[0], beside))
        raise InputError(f"{place} does not exist; show privacy needs a run's folder or a ledger's file{near}")
    return place, list(words[1:])


def read(place: Path, overrides: Sequence[str] = ()) -> tuple[Scenario | None, list[Account]]:
    """A run's scenario and accounts; or of ledgers alone, read against the budgets in ``overrides`` or the defaults."""
    if folders.is_run(place):
        scenario = folders.scenario_of(place, list(overrides))
        return scenario, accounts(scenario, place)
    if place.is_file() and folders.is_run(place.parent):
        scenario = folders.scenario_of(place.parent, list(overrides))
        return scenario, [account(place, guarantee_of(place), scenario.privacy)]
    settings = load("movielens", list(overrides)).privacy
    return None, [account(path, guarantee, settings) for guarantee, path in ledgers(place).items()]


def ledgers(place: Path) -> dict[str, Path]:
    """The ledgers of a folder, or the one in a file, by the guarantee that each keeps. Raises `InputError` where there is none."""
    if place.is_file():
        return {guarantee_of(place): place}
    found = {guarantee: place / name for guarantee, name in FILES.items() if (place / name).is_file()}
    if not found:
        raise InputError(f"{place} holds neither a run nor a ledger ({' or '.join(FILES.values())})")
    return found


def guarantee_of(path: Path) -> str:
    """Which guarantee a ledger keeps: by the parts that are booked in it, or if there are none by its name."""
    with Ledger(path) as ledger:
        booked = {part for booking in ledger.bookings() for part in booking.what}
    return "user" if booked == {WHAT} or (not booked and path.name == JOINT) else "example"


def _unbooked(place: Path) -> str:
    return f"{place} promises a guarantee, and has no ledger yet: nothing was trained."
