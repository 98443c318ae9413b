"""What has come of it: `forget.json`, and what is said of it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.table import Table

from client.data.types import Dataset, Encoded
from client.node import Node
from client.private import PrivateStore
from server.report.files import read_rounds, training_seconds
from server.report.promise import spent
from simulations.forget import life, membership, search
from simulations.forget.plan import Plan
from simulations.life import periods
from simulations.training import World
from strategies.base import Task
from strategies.unlearning import bounds


def of(asked: Plan, there: World, made: dict[str, Any]) -> dict[str, Any]:
    """All that is said of a forgetting. ``there``: the old run's data. ``made``: seconds, wall, differs."""
    tests = {when: _asked(asked, there, folder) for when, folder in (("before", asked.run), ("after", asked.stage))}
    needles = search.windows(PrivateStore(asked.run / "private"), dropped(asked))
    left = search.search(asked.stage, needles, asked.gone)
    own = {when: found.get("own", {}).get("members") for when, found in tests.items()}
    return {
        "users": asked.marks, "way": asked.how, "options": asked.options, "exact": asked.way.exact, "run": str(asked.run),
        "auc_before": own["before"].auc if own["before"] else None, "auc_after": own["after"].auc if own["after"] else None,
        "interval": {when: found.interval if found else None for when, found in own.items()},
        "membership": {when: {name: {who: x._asdict() for who, x in each.items()} for name, each in found.items()}
                       for when, found in tests.items()},
        "max_abs_diff_to_never_there": made["differs"], "seconds": made["seconds"], "seconds_in_all": made["wall"],
        "seconds_of_retraining": _retraining(asked), "bytes_found": left.bytes, "pieces_searched": left.searched,
        "names_found": left.names, "not_searched": _ledgers(asked.stage), "promised": list(promised(asked, there.dataset)),
    }  # fmt: skip


def dropped(asked: Plan) -> set[str]:
    """Whose private adapters of the old run are not in the new one. Under guarantee E one that has seen an example may stay."""
    covered = asked.old.privacy.promises_examples and asked.how == "leave" and not asked.old.life.periods
    return set() if asked.units and covered else set(asked.users)


def trained_on(data: Dataset, user: str) -> list[Encoded]:
    """All that a user has trained on: of a life, up to its period."""
    own = data.users[user].train if user in data.users else ()
    return [*data.earlier.get(user, ()), *own]


def _retraining(asked: Plan) -> float:
    if not asked.old.life.periods:
        return training_seconds(read_rounds(asked.run))
    return sum(training_seconds(read_rounds(periods.place(asked.run, number))) for number in periods.over(asked.old, asked.run))


# ---------------------------------------------------------------------- whether they were there
def _asked(asked: Plan, there: World, folder: Path) -> dict[str, dict[str, membership.Told]]:
    """The membership test on one of the two runs. Both get the same texts."""
    scenario = asked.old if folder == asked.run else asked.new
    now = life.state(scenario, folder)
    with closing(Node(life.last(scenario, folder), there.base, there.dataset, PrivateStore(folder / "private"))) as node:
        return membership.told(node, Task(now.round + 1, now.shared), _groups(asked, there.dataset))


def _groups(asked: Plan, data: Dataset) -> membership.Asked:
    if asked.units:
        (user,) = asked.users
        trained = trained_on(data, user)
        gone, stay = ([e for e in trained if (e.unit in asked.units) is there] for there in (True, False))
        tests = data.users[user].test if user in data.users else ()
        return membership.Asked({user: gone}, {user: tests}, {user: stay}, single=True)
    others = [user for user in data.users if user not in asked.users][: max(len(asked.users), 10)]
    return membership.Asked(
        {user: trained_on(data, user) for user in asked.users},
        {user: splits.train for user, splits in data.unseen.items()},
        {user: trained_on(data, user) for user in others},
    )


# ---------------------------------------------------------------------- what differential privacy says
def promised(asked: Plan, data: Dataset) -> Iterator[dict[str, Any]]:
    """What each guarantee of the old run says of the forgotten, in numbers."""
    for guarantee, epsilon in spent(life.last(asked.old, asked.run), _home(asked)).items():
        delta = getattr(asked.old.privacy, guarantee).delta
        said = {"guarantee": guarantee, "epsilon": epsilon, "delta": delta, "odds": bounds.odds(epsilon),
                "largest_auc": bounds.largest_auc(epsilon, delta)}  # fmt: skip
        if guarantee == "example":
            most = len(asked.units) or max(len({e.unit for e in trained_on(data, user)}) for user in asked.users)
            said["together"] = dict(zip(("units", "epsilon", "delta"), (most, *bounds.group(epsilon, delta, most)), strict=True))
        if asked.way.trains:  # whoever has seen both runs has seen others' examples twice
            said["both_runs"] = {"epsilon": 2 * epsilon, "delta": 2 * delta}
        yield said


def _home(asked: Plan) -> Path:
    return periods.place(asked.run, periods.over(asked.old, asked.run)[-1]) if asked.old.life.periods else asked.run


def _ledgers(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for name in search.LEDGERS for path in folder.rglob(name))


# ---------------------------------------------------------------------- for people
def words(found: dict[str, Any]) -> Iterator[str]:
    """What is promised, and what was found, in sentences."""
    yield "exact: nothing of the old run is in the new one" if found["exact"] else "not exact: the new run began with the old one's"
    for said in found["promised"]:
        what = "whether one of the examples" if said["guarantee"] == "example" else "whether the user"
        yield (
            f"guarantee {said['guarantee']}: {what} was there changes the probability of anything by at most a factor of "
            f"{said['odds']:.4g} and {said['delta']:g}; no test has an AUC above {said['largest_auc']:.4f}"
        )
        if "together" in said:
            units, epsilon, delta = said["together"].values()
            yield f"of {units} together: epsilon {epsilon:.4g}, delta {delta:.3g}{', which says nothing' if delta >= 0.5 else ''}"
    yield f"bytes found: {found['bytes_found']} ({found['pieces_searched']} pieces were searched for)"
    for name in found["names_found"]:
        yield f"still names a user: {name}"
    if found["not_searched"]:
        yield f"kept as proof, with names: {', '.join(found['not_searched'])}"
    if found["max_abs_diff_to_never_there"] is not None:
        yield f"largest difference to a run that never had them: {found['max_abs_diff_to_never_there']:g}"


def table(found: dict[str, Any]) -> Table:
    """The membership test, before and after."""
    shown = Table(title="Were they there? (AUC; 0.5: cannot be told)", title_justify="left", header_style="bold", box=None)
    for column in ("who asks", "of", "before", "after", "by chance"):
        shown.add_column(column)
    before, after = found["membership"]["before"], found["membership"]["after"]
    for name, each in before.items():
        for who, told in each.items():
            now = after.get(name, {}).get(who)
            chance = f"{told['chance'][0]:.2f} to {told['chance'][1]:.2f}"
            shown.add_row(name, {"members": "forgotten", "control": "still there"}[who], _said(told), _said(now) if now else "", chance)
    return shown


def _said(told: dict[str, Any]) -> str:
    return f"{told['auc']:.3f} ({told['interval'][0]:.3f} to {told['interval'][1]:.3f})"
