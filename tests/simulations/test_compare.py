"""A study file becomes one table: each run made once, side by side, and counted right."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from configs.scenario import load, scenario_hash
from server.report.files import read_users
from server.report.summary import summarize
from simulations.compare import page, plan, runs, table
from tests.simulations.command import call
from tests.simulations.conftest import World

CONTROLS = "controls=[base, user_bias, shared, shared_private]"


def study(folder: Path, settings: tuple[str, ...] = (), **changes: Any) -> Path:
    """A study of two lines by two seeds, in a file."""
    axes = {"scheme": {"dual": [], "shared only": "scheme=shared_only"}}
    tree = {"scenario": "movielens", "overrides": [*settings, CONTROLS], "seeds": [0, 1], "axes": axes} | changes
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in tree.items() if value is not None}, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sedes": [1]}, "unknown key 'sedes' (did you mean 'seeds'?)"),
        ({"seeds": []}, "seeds must be a list of different whole numbers"),
        ({"seeds": [1, 1]}, "seeds must be a list of different whole numbers"),
        ({"seeds": [True]}, "seeds must be a list of different whole numbers"),
        ({"axes": None}, "axes must hold at least one axis"),
        ({"axes": {"scheme": []}}, "axes.scheme must hold labels with their settings"),
        ({"axes": {"scheme": {"dual": 3}}}, "axes.scheme.dual must be settings"),
        ({"axes": {"scheme": {"mine": "shceme=dual"}}}, "small.yaml, mine: unknown key 'shceme' (did you mean 'scheme'?)"),
        ({"overrides": [1]}, "overrides must be settings"),
        ({"scenario": "movielesn"}, "did you mean 'movielens'?"),
    ],
)
def test_a_study_that_makes_no_sense_is_one_sentence(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        plan.read(study(tmp_path, **changes))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"), [(("compare", "privcay"), "did you mean 'privacy'?"), (("compare", "privacy", "--seeds", "9"), "3 seeds, not 9")]
)
def test_the_command_refuses_in_one_sentence_with_code_2(here: Path, words: tuple[str, ...], said: str) -> None:
    answer = call(*words)
    assert answer.code == 2 and said in answer.err and not list(here.iterdir())


def test_every_label_meets_every_other_and_equal_scenarios_are_one_run(tmp_path: Path) -> None:
    axes = {
        "scheme": {"a": "scheme=dual", "b": "scheme=fedsa"},
        "rounds": {"x": "rounds=2", "y": ["rounds=3", "seed=7"], "again": "rounds=2"},
    }
    found = plan.read(study(tmp_path, axes=axes))
    assert [row.labels for row in found.rows] == [(a, b) for a in "ab" for b in ("x", "y", "again")]
    assert [s.seed for s in found.rows[1].scenarios] == [0, 1] and found.rows[1].scenarios[0].rounds == 3
    assert found.rows[3].scenarios[0].scheme == "fedsa"
    assert len(found.runs()) == 8, "x and again are the same scenarios"
    assert plan.read(study(tmp_path, axes=axes), 1).seeds == (0,)


def test_a_label_may_begin_with_another_scenario(tmp_path: Path) -> None:
    axes = {"method": {"usual": [], "demo's": ["seed=5", "scenario=demo"]}}
    first, second = plan.read(study(tmp_path, axes=axes)).rows
    assert dataclasses.replace(load("demo", [CONTROLS]), name="small", seed=0) == second.scenarios[0]
    assert first.scenarios[0].scheme == load("movielens").scheme


@pytest.mark.parametrize("name", [path.stem for path in plan.STUDIES.glob("*.yaml")])
def test_the_studies_that_come_with_it_can_be_read(name: str) -> None:
    assert len(plan.read(name).rows) > 1


def test_what_is_finished_stays_and_two_processes_make_what_one_makes(world: World, tmp_path: Path) -> None:
    path = study(tmp_path, world.settings, seeds=[0])
    first = call("compare", path, "--out", tmp_path / "one", "--jobs", "1")
    assert first.code == 0, first.err
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("summary.json")}
    assert len(stamps) == 2
    assert call("compare", path, "--out", tmp_path / "one").code == 0
    assert all(p.stat().st_mtime_ns == at for p, at in stamps.items()), "nothing is run again"
    two = call("compare", path, "--out", tmp_path / "two", "--jobs", "2")
    assert two.code == 0, two.err
    lines = [_numbers(tmp_path / name / "compare.csv") for name in ("one", "two")]
    assert lines[0] == lines[1]
    assert (tmp_path / "one" / "compare.md").read_text().splitlines()[2].startswith("| scheme | nll")


def test_the_table_says_what_the_runs_say(world: World, tmp_path: Path) -> None:
    axes = {"lr": {"usual": [], "none": ["shared_training.lr=0", "private_training.lr=0"], "shared only": "scheme=shared_only"}}
    chosen = plan.read(study(tmp_path, world.settings, axes=axes))
    places = runs.run(chosen.runs(), tmp_path / "runs", 1)
    one, still, other = table.found(chosen, places)
    summaries = [summarize(places[scenario_hash(s)]) for s in chosen.rows[0].scenarios]
    means = [s["rows"]["shared"]["mean"] for s in summaries]
    assert one["rows"]["shared"]["nll"] == table.Over(sum(means) / 2, min(means), max(means))
    assert one["kept"] == table.Over(1.0, 1.0, 1.0) and one["saved"] is None
    assert still["kept"].mean == pytest.approx(0.0, abs=1e-6), "who does not learn keeps nothing"
    gained = [-gained_by(s) for s in summaries]
    assert still["saved"]["means"] == pytest.approx(gained, abs=1e-5), (
        "against the first line it loses what that has gained over the base"
    )
    assert "shared_private" not in other["rows"] and other["helped"] is None, "what a line lacks is not made up"
    assert other["own"] == other["rows"]["shared"], "without anything private, the shared adapter is what a user ends up with"
    (sure,) = [s["rows"]["base"]["mean"] - s["rows"]["shared"]["mean"] for s in [summarize(other["runs"][0])]]
    assert other["kept"].low - 1e-9 <= sure / gained_by(summaries[0]) <= other["kept"].high + 1e-9
    assert still["paired"].users == len({user for s in chosen.rows[0].scenarios for user in _seen(places[scenario_hash(s)])})
    assert one["paired"] is None and 0 < still["paired"].p <= still["paired"].holm <= 1
    text, flat = table.markdown(chosen, [one, still, other]), table.to_csv(chosen, [one, still, other])
    row = {line["lr"]: line for line in csv.DictReader(flat.splitlines())}["none"]
    assert float(row["paired.holm"]) == still["paired"].holm and float(row["paired.better"]) == still["paired"].better
    assert f"{still['paired'].better:.0%}" in text.splitlines()[5] and "unseen users" in text and float(row["unseen"]) > 0
    assert float(row["kb_down"]) > 0 and row["scenarios"].split() == [scenario_hash(s) for s in chosen.rows[1].scenarios]
    assert other["labels"] == {"lr": "shared only"} and other["epsilon"] == {} and len(other["runs"]) == 2


def test_a_run_of_another_scenario_in_the_way_is_refused_before_anything_runs(world: World, tmp_path: Path) -> None:
    chosen = plan.read(study(tmp_path, world.settings))
    last = list(chosen.runs())[-1]
    (tmp_path / "runs" / last).mkdir(parents=True)
    (tmp_path / "runs" / last / "scenario.yaml").write_text((world.run / "scenario.yaml").read_text())
    with pytest.raises(InputError, match="holds a run of another scenario"):
        runs.run(chosen.runs(), tmp_path / "runs", 1)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [last]


def test_a_pages_curves_are_by_guarantee_and_by_what_else_differs() -> None:
    def line(labels: dict[str, str], budgets: dict[str, float], gain: float) -> dict[str, Any]:
        return {"labels": labels, "budgets": budgets, "gain": table.Over(gain, gain, gain)}

    lines = [
        line({"kind": "core", "privacy": "none"}, {}, 0.5),
        line({"kind": "core", "privacy": "8"}, {"example": 8.0}, 0.4),
        line({"kind": "core", "privacy": "2"}, {"example": 2.0}, 0.3),
        line({"kind": "core", "privacy": "u"}, {"user": 8.0}, 0.2),
        line({"kind": "core", "privacy": "both"}, {"example": 8.0, "user": 8.0}, 0.1),
        line({"kind": "lora", "privacy": "2"}, {"example": 2.0}, 0.0),
    ]
    found = {name: [(at, gain.mean) for at, gain in points] for name, points in page.curves(lines).items()}
    assert found == {
        "core, guarantee E": [("2", 0.3), ("8", 0.4), ("no noise", 0.5)],
        "core, guarantee U": [("8", 0.2), ("no noise", 0.5)],
    }


def test_a_page_escapes_what_a_study_calls_its_lines(world: World, tmp_path: Path) -> None:
    axes = {"<b>axis</b>": {"<i>one</i>": []}, "privacy": {"none": [], "E": "privacy=example"}}
    chosen = plan.read(study(tmp_path, world.settings, axes=axes, seeds=[0]))
    places = runs.run(chosen.runs(), tmp_path / "runs", 1)
    text = page.render(chosen, table.found(chosen, places))
    body = text[text.index("<body>") :]
    assert "&lt;i&gt;one&lt;/i&gt;" in body and "<i>one" not in body and "<b>axis" not in body
    assert "What privacy costs" in body


def test_bad_input_that_one_run_finds_late_stops_no_other_and_is_said_at_the_end(world: World, tmp_path: Path) -> None:
    axes = {"who": {"too many": "data.users=99", "all": []}}
    chosen = plan.read(study(tmp_path, world.settings, axes=axes, seeds=[0]))
    with pytest.raises(InputError, match=r"data.users=99.*; 1 of 2 runs are done and stay"):
        runs.run(chosen.runs(), tmp_path / "runs", 1)
    assert runs.finished(tmp_path / "runs" / list(chosen.runs())[1])


def _seen(place: Path) -> list[str]:
    users = read_users(place)
    return [name for name, seen in zip(users.names, users.seen, strict=True) if seen]


def gained_by(summary: dict[str, Any]) -> float:
    """What shared + private saves over the base, in nats."""
    return -summary["gains"]["base"]["mean"]


def _numbers(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in csv.DictReader(path.read_text().splitlines())]


def test_a_runs_own_name_is_the_studys(tmp_path: Path) -> None:
    chosen = plan.read(study(tmp_path, name="mine"))
    assert {s.name for s in chosen.runs().values()} == {"mine"}
    assert load("movielens", [CONTROLS]).name == "movielens"
