"""What a study file asks for: a scenario, settings along axes, seeds; and the runs that this comes to.

A study file holds ``scenario`` (a name or a YAML file), ``overrides`` (settings of every run), ``seeds`` and ``axes``: a
name for each axis, and for each of its values a label with the settings that it stands for; ``scenario=NAME`` among them begins with
another scenario. Every label of one axis meets every label of the others. The first labels of all axes are the row that the others
are held against. An axis ``privacy`` is what a page draws gains along. ``sweep`` (`simulations.compare.space`) names settings that are
to be found for each row before it is run.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs import reading
from configs.errors import InputError, nearest
from configs.scenario import HERE, Scenario, load, scenario_hash
from simulations.compare import space
from simulations.compare.space import Sweep

STUDIES = HERE / "studies"
BEGIN = "scenario="
KEYS = ("name", "scenario", "overrides", "seeds", "axes", "sweep")


@dataclass(frozen=True)
class Row:
    """One line of the table: a label per axis, and a scenario per seed; ``settings`` upon the scenario ``begin`` make them."""

    labels: tuple[str, ...]
    scenarios: tuple[Scenario, ...]
    begin: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A study: its axes and its rows. Every row has the same seeds in the same order."""

    name: str
    axes: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    sweep: Sweep | None = None

    def runs(self) -> dict[str, Scenario]:
        """The scenarios by their hash: one that stands in several rows is run once."""
        return {scenario_hash(scenario): scenario for row in self.rows for scenario in row.scenarios}


def read(source: str | Path, seeds: int = 0) -> Plan:
    """Read a study: a name in `configs/studies`, or a YAML file. ``seeds``: the first so many only; 0: all.

    Raises `InputError` for an unknown key, a wrong type, a setting that is none.
    """
    path = _path(source)
    tree = _tree(path)
    chosen = _seeds(path, tree.get("seeds", [0, 1, 2]))
    if seeds > len(chosen):
        raise InputError(f"{path}: there are {len(chosen)} seeds, not {seeds}")
    axes, sweep = _axes(path, tree.get("axes")), space.read(str(path), tree.get("sweep"), chosen)
    scenario, common = str(tree.get("scenario", "movielens")), _settings(path, "overrides", tree.get("overrides", []))
    name, chosen = str(tree.get("name", path.stem)), chosen[: seeds or None]
    rows = []
    for labels in itertools.product(*axes.values()):
        own = [*itertools.chain(*(axes[axis][label] for axis, label in zip(axes, labels, strict=True)))]
        settings = [*common, *own]
        begin = [item.removeprefix(BEGIN) for item in settings if item.startswith(BEGIN)]
        rest = tuple(item for item in settings if not item.startswith(BEGIN))
        with _told(path, labels):
            rows.append(_row(name, labels, [scenario, *begin][-1], rest, chosen))
            _refuse(sweep, rows[-1], own)
    return Plan(name, tuple(axes), chosen, tuple(rows), sweep)


def fixed(plan: Plan, found: Sequence[Sequence[str]]) -> Plan:
    """The study with settings that a sweep has found, a list of ``key=value`` for each row, after the row's own."""
    rows = [
        _row(plan.name, row.labels, row.begin, (*row.settings, *more), plan.seeds) for row, more in zip(plan.rows, found, strict=True)
    ]
    return replace(plan, rows=tuple(rows))


def _row(name: str, labels: tuple[str, ...], begin: str, settings: tuple[str, ...], seeds: tuple[int, ...]) -> Row:
    chosen = load(begin, settings)
    return Row(labels, tuple(replace(chosen, seed=seed, name=name) for seed in seeds), begin, settings)


def _refuse(sweep: Sweep | None, row: Row, own: Sequence[str]) -> None:
    """Raise `InputError` where a sweep cannot be had of a row."""
    if sweep is None:
        return
    for item in own:
        if item.partition("=")[0] in sweep.settings:
            raise InputError(f"{item} is an axis' own, and sweep.settings would overwrite it")
    if row.scenarios[0].data.validation == 0:
        raise InputError("a sweep judges by the validation split, and data.validation is 0")
    for item in sweep.corners():
        load(row.begin, [*row.settings, item])


@contextmanager
def _told(path: Path, labels: tuple[str, ...]) -> Iterator[None]:
    """Name the file and the line in whatever is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}, {' / '.join(labels)}: {error}") from None


def _path(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = STUDIES / f"{source}.yaml"
    if not path.is_file():
        raise InputError(f"no study '{source}'{nearest(Path(source).stem, [found.stem for found in STUDIES.glob('*.yaml')])}")
    return path


def _tree(path: Path) -> Mapping[str, Any]:
    tree: Any = OmegaConf.to_container(reading.tree(path, reading.text(path)))
    for key in tree:
        if key not in KEYS:
            raise InputError(f"{path}: unknown key '{key}'{nearest(str(key), KEYS)}")
    return tree


def _seeds(path: Path, value: Any) -> tuple[int, ...]:
    fit = (
        isinstance(value, list) and value and all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in value)
    )
    if not fit or len(set(value)) < len(value):
        raise InputError(f"{path}: seeds must be a list of different whole numbers, 0 or more, got {value!r}")
    return tuple(value)


def _axes(path: Path, value: Any) -> dict[str, dict[str, list[str]]]:
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{path}: axes must hold at least one axis, a name with labels below it, got {value!r}")
    axes = {}
    for axis, labels in value.items():
        if not isinstance(labels, Mapping) or not labels:
            raise InputError(
                f"{path}: axes.{axis} must hold labels with their settings, like 'epsilon 2: privacy.example.epsilon=2', got {labels!r}"
            )
        axes[str(axis)] = {str(label): _settings(path, f"axes.{axis}.{label}", found) for label, found in labels.items()}
    return axes


def _settings(path: Path, name: str, value: Any) -> list[str]:
    """One setting, several between spaces, or a list of them."""
    if value is None:
        return []
    items = value.split() if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise InputError(f"{path}: {name} must be settings like [rounds=5, shared.rank=4], got {value!r}")
    return items
