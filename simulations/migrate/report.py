"""What is left of the gain: `migrate.json` and a table."""

import json
from typing import Any

from rich.table import Table

from configs.scenario import scenario_hash
from simulations.migrate.plan import Plan
from strategies.metrics import mean
from strategies.retained import retained

FILE = "migrate.json"
ROWS = ("base", "shared", "shared_private", "local_only")  # of an evaluation; which there are is the scheme's
PERSONAL = ("shared_private", "local_only", "shared")  # what a user's own model is called, the first that there is
DEFINITION = (
    "(score(new adapter on new base) - score(new base)) / (score(old adapter on old base) - score(old base)), score = -nll on the test "
    "split; mean: over users who had gained more than 0.01 nats; cohort: of the sums over all users"
)
Tables = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # a row per user, on the old base and on the new one


def of(asked: Plan, tables: Tables | None, bases: dict[str, str], seconds: float, lost: float) -> dict[str, Any]:
    """All that is said of a migration. ``tables``: None where nobody here has the users' data."""
    found: dict[str, Any] = {
        "migrator": asked.how, "options": asked.options, "run": str(asked.run), "uses_data": asked.migrator.uses_data,
        "scenario": {"from": scenario_hash(asked.old), "to": scenario_hash(asked.new)},
        "model": {"from": asked.old.model.name, "to": asked.new.model.name}, "base": bases,
        "lost": lost, "seconds": seconds, "retrain_seconds": trained_in(asked),
    }  # fmt: skip
    return found | (_scores(*tables) if tables else {"users": None})


def _scores(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and ratios over the users who took part in training."""
    old, new = ([row for row in table if row["seen"]] for table in (old, new))
    personal = next(name for name in PERSONAL if f"{name}.nll" in new[0] and f"{name}.nll" in old[0])
    base, own = (column(old, "base"), column(new, "base")), (column(old, personal), column(new, personal))
    kept = retained(base[0], own[0], base[1], own[1])
    found = {
        "users": len(new), "metric": "nll", "definition": DEFINITION, "personal": personal,
        "retained_gain": {name: kept[name] for name in ("mean", "cohort", "counted")},
        "harmed": kept["harmed"], "harmed_before": kept["harmed_before"],
        "rows": {f"{name} {when}": means(table, name) for when, table in (("old", old), ("new", new)) for name in ROWS
                 if f"{name}.nll" in table[0]},
    }  # fmt: skip
    if personal == "shared_private" and "shared.nll" in new[0]:  # what users' own adapters add to the shared one
        alone = retained(column(old, "shared"), own[0], column(new, "shared"), own[1])
        found["retained_private_gain"] = {name: alone[name] for name in ("mean", "cohort", "counted")}
    return found


def column(table: list[dict[str, Any]], name: str) -> list[float]:
    """Each user's loss in one row."""
    return [row[f"{name}.nll"] for row in table]


def means(table: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Every metric of one row as a mean over users who have it."""
    columns = {
        key.partition(".")[2]: [row[key] for row in table if row[key] is not None] for key in table[0] if key.startswith(f"{name}.")
    }
    return {metric: mean(values) for metric, values in columns.items() if values}


def trained_in(asked: Plan) -> float | None:
    """Seconds that the old run's training took: what training anew on the new base would take about."""
    path = asked.run / "timing.json"
    return json.loads(path.read_text())["seconds"].get("train") if path.exists() else None


def table(found: dict[str, Any]) -> Table:
    """The rows, for a terminal."""
    made = Table(header_style="bold", box=None)
    for name in ("row", "nll", "accuracy"):
        made.add_column(name, justify="left" if name == "row" else "right")
    for name, row in found.get("rows", {}).items():
        made.add_row(name.replace("_", " "), *(f"{row[m]:.4f}" if m in row else "" for m in ("nll", "accuracy")))
    return made


def words(found: dict[str, Any]) -> str:
    """What came of it, in a few lines."""
    again = f", training took {found['retrain_seconds']:.1f} s" if found["retrain_seconds"] else ""
    said = [f"{found['migrator']}: {found['seconds']:.1f} s{again}; of the adapters' changes {found['lost']:.1%} lost"]
    if not found["users"]:
        return said[0]
    kept, own = found["retained_gain"], found.get("retained_private_gain")
    said.append(
        f"retained gain: {_share(kept['cohort'])} of the cohort's, {_share(kept['mean'])} as a mean over {kept['counted']} users"
    )
    if own:
        said.append(f"of what the users' own adapters add: {_share(own['cohort'])}, {_share(own['mean'])} over {own['counted']} users")
    said.append(f"worse than the base alone: {found['harmed']} of {found['users']} users, before {found['harmed_before']}")
    return "\n".join(said)


def _share(value: float | None) -> str:
    return "no gain to retain" if value is None else f"{value:.3f}"
