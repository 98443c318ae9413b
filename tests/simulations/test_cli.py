"""The commands do what their help says, and speak plainly where nobody looks."""

import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from peft import PeftModel
from rich.console import Console

from client.adapters import KINDS, PROMPTS
from client.data import SOURCES
from configs.scenario import HERE, load, scenario_hash
from server import checkpoint
from server.report.controls import WORDS
from simulations import usage
from simulations.__main__ import app
from simulations.listing import entries
from simulations.progress import line, watch
from strategies.aggregators import AGGREGATORS
from strategies.files import read_state
from strategies.schemes import SCHEMES
from tests.simulations.command import ROUNDS, USERS, call, timeless
from tests.simulations.conftest import World

COMMANDS = ("run", "resume", "show", "plan", "compare", "export", "list", "fetch", "bench", "audit")
KEYS = {"scenario_hash", "seed", "users", "rounds", "metric", "higher_is_better", "rows", "helped", "harmed", "bytes_up_per_user_round",
        "bytes_down_per_user_round", "seconds", "tokens_per_second", "epsilon"}  # fmt: skip


def run(world: World, out: Path, *more: str) -> Any:
    """Run the tiny scenario into a folder."""
    return call("run", "movielens", *world.settings, *more, "--out", out)


# ------------------------------------------------------------------ run and resume
def test_a_run_ends_well_and_leaves_what_people_and_programs_read(world: World) -> None:
    assert (world.said.code, world.said.err) == (0, "")
    files = {path.name for path in world.run.iterdir()}
    assert files >= {"scenario.yaml", "rounds.jsonl", "users.csv", "timing.json", "summary.json", "report.html", "checkpoint.json"}
    summary = json.loads((world.run / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert summary["scenario_hash"] == scenario_hash(load("movielens", world.settings))
    assert (summary["users"], summary["rounds"], summary["epsilon"]) == (USERS, ROUNDS + 1, {})
    assert "shared_private" in summary["rows"]


def test_a_run_says_one_plain_line_a_round_where_there_is_no_terminal(world: World) -> None:
    assert "\x1b" not in world.said.out
    assert "\r" not in world.said.out
    first, *rest = world.said.out.splitlines()
    assert first == f"tiny: {ROUNDS + 1} rounds, in {world.run}"
    form = r"tiny round \d: loss \d+\.\d+(, validation nll .*)?; [\d.]+ users/s, \d+ tokens/s"
    assert [line for line in rest if " round " in line] == rest[: ROUNDS + 1]
    assert all(re.fullmatch(form, said) for said in rest[: ROUNDS + 1])
    assert [("validation" in said) for said in rest[: ROUNDS + 1]] == [False, True, False, True]
    assert rest[-2:] == [f"report: {world.run / 'report.html'}", f"users:  {world.run / 'users.csv'}"]


def test_tables_are_not_cut_where_there_is_no_terminal(world: World) -> None:
    rows = [said for said in world.said.out.splitlines() if said.startswith("shared + private")]
    assert len(rows) == 1
    assert "…" not in world.said.out


def test_the_default_folder_bears_the_name_and_the_hash(world: World, here: Path) -> None:
    settings = [*world.settings, "rounds=1", "personalize=0", "name=other"]
    assert call("run", "movielens", *settings).code == 0
    assert [path.name for path in (here / "runs").iterdir()] == [f"other-{scenario_hash(load('movielens', settings))}"]


@pytest.mark.parametrize("again", ["run the same", "run the folder", "resume"])
def test_a_run_that_was_stopped_says_how_to_go_on_and_ends_as_if_it_had_not_been(
    world: World, here: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    commit = checkpoint.commit

    def stops(folder: Path, state: checkpoint.Checkpoint) -> None:
        commit(folder, state)
        if state.round == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "commit", stops)
        stopped = run(world, here / "a run")
    assert stopped.code == 130
    assert stopped.err == f"stopped; go on with: python -m simulations resume '{here / 'a run'}'\n"
    shown = call("show", here / "a run")
    assert shown.out.endswith(f"not finished; go on with: python -m simulations resume '{here / 'a run'}'\n")
    way = {
        "run the same": ["run", "movielens", *world.settings, "--out", here / "a run"],
        "run the folder": ["run", here / "a run"],
        "resume": shlex.split(stopped.err.partition("simulations ")[2]),
    }
    said = call(*way[again])
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"tiny: goes on after round 2 of {ROUNDS + 1}, in ")
    assert "round 2:" not in said.out
    assert timeless(here / "a run") == timeless(world.run)
    assert (here / "a run" / "users.csv").read_bytes() == (world.run / "users.csv").read_bytes()


def test_a_run_stopped_before_it_wrote_anything_says_so(world: World, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("client.base.load", stops)
    said = run(world, here / "run")
    assert (said.code, said.err) == (130, "stopped; nothing was written\n")
    assert not (here / "run").exists()


def test_what_cannot_change_the_result_may_be_set_anew(world: World, here: Path) -> None:
    settings = ["rounds=1", "personalize=0"]
    assert run(world, here / "run", *settings).code == 0
    said = call("resume", here / "run", "engine.tokens_per_pass=64")
    assert said.code == 0
    assert load(here / "run" / "scenario.yaml").engine.tokens_per_pass == 64


def test_transformers_shows_no_bars_of_its_own(world: World, here: Path) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    assert run(world, here / "run", "rounds=1", "personalize=0").err == ""


# ------------------------------------------------------------------ what a person sees of the rounds
ROW = {"round": 1, "users": 6, "tokens": 900, "train_loss": 0.5, "dropped": {"nan": 2}, "seconds": {"train": 3.0},
       "validation": {"shared_private": {"nll": 0.25}}}  # fmt: skip


def test_a_round_is_one_line_with_speed_and_what_was_dropped() -> None:
    said = "round 1: loss 0.5000, validation nll shared + private 0.2500; 2.0 users/s, 300 tokens/s; 2 releases dropped"
    assert line(ROW) == said
    assert line(ROW | {"dropped": {}, "validation": {}}) == "round 1: loss 0.5000; 2.0 users/s, 300 tokens/s"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_a_bar_with_users_and_tokens_per_second(terminal: bool) -> None:
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=terminal, force_interactive=terminal, width=120, color_system="standard")
    with watch(console, "[tiny]", 3, done=1) as observe:
        for number in (2, 3):
            observe(ROW | {"round": number})
        observe(ROW)
    text = seen.getvalue()
    assert ("\x1b[" in text, "3/3" in text) == (terminal, terminal)
    assert "2.0 users/s, 300 tokens/s" in text
    assert "round 2: loss 0.5000" in text
    assert "[tiny]" in text, "a name is no markup"
    assert "[tiny], a control" in text


def test_without_a_terminal_a_long_run_is_about_twenty_lines_and_what_is_not_as_usual() -> None:
    seen = io.StringIO()
    usual = ROW | {"dropped": {}, "validation": {}}
    with watch(Console(file=seen, width=120), "long", 205) as observe:
        for number in range(1, 206):
            observe(usual | {"round": number} | ({"dropped": {"nan": 1}} if number == 33 else {}))
    told = [int(words.split()[2].removesuffix(":")) for words in seen.getvalue().splitlines()]
    assert told == sorted({*range(10, 206, 10), 33, 205})


# ------------------------------------------------------------------ show, compare, list
def test_a_scenario_is_shown_so_that_it_loads_again(world: World, here: Path) -> None:
    settings = [*world.settings, f"data.path=/{'long/' * 250}[bold]:smile:[/bold]"]
    said = call("show", "movielens", *settings)
    (here / "mine.yaml").write_text(said.out)
    assert load(here / "mine.yaml") == load("movielens", settings)
    assert said.out.startswith(f"# tiny-{scenario_hash(load('movielens', settings))}\n")
    assert call("show", "mine.yaml").out == said.out


def test_a_run_is_shown_with_its_controls_rounds_and_users(world: World) -> None:
    said = call("show", world.run, "--rounds", "--users", "2")
    assert said.code == 0
    assert f"{USERS} users, nll" in said.out
    assert re.search(r"^shared \+ private +\d", said.out, re.MULTILINE)
    assert re.search(rf"^ +{ROUNDS + 1} +{USERS} +0 ", said.out, re.MULTILINE)
    assert f"2 of {USERS + 1} users" in said.out
    short = call("show", world.run).out
    assert said.out.startswith(short)
    assert len(short) < len(said.out)


def test_runs_are_laid_side_by_side(world: World, here: Path) -> None:
    assert run(world, here / "second", "seed=1").code == 0
    said = call("compare", world.run, here / "second")
    assert said.code == 0
    assert re.search(r"^folder +tiny +second$", said.out, re.MULTILINE)
    assert re.search(r"^seed +0 +1$", said.out, re.MULTILINE)
    assert re.search(r"^saved, shared \+ private +- +[+-]\d", said.out, re.MULTILINE)


def test_the_list_holds_every_name_of_every_registry() -> None:
    said = call("list")
    assert said.code == 0
    names = {(field, name) for field, name, _ in entries()}
    for field, registry in (("scheme", SCHEMES), ("aggregator", AGGREGATORS), ("data.name", SOURCES), ("controls", WORDS)):
        assert {name for where, name in names if where == field} - {"flower.<Class>", "<module>.<function>"} == set(registry)
    assert {name for where, name in names if where == "private.kind"} == {*KINDS, *PROMPTS}
    assert {name for where, name in names if where == "scenario"} == {path.stem for path in HERE.glob("*.yaml")}
    for field, name, about in entries():
        assert about, f"{field} {name} says nothing about itself"
        assert f"{name} " in said.out
        assert about in said.out


# ------------------------------------------------------------------ export
def test_what_export_prints_loads_the_user_in_stock_peft(world: World, here: Path) -> None:
    said = call("export", world.run, "u1", "--out", "mine")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("# The model of user u1\n")
    found: dict[str, Any] = {}
    exec(said.out.partition("```python\n")[2].partition("```")[0], found)
    assert isinstance(found["model"], PeftModel)
    saved = read_state(here / "mine" / "adapter_model.safetensors")
    assert saved
    assert any(bool(value.any()) for name, value in saved.items() if "lora_B" in name)


# ------------------------------------------------------------------ help and mistakes
def test_the_help_lists_the_commands_and_is_there_without_being_asked_for() -> None:
    said = call()
    assert said.code == 0
    assert said.out.strip() == call("--help").out.strip()
    assert all(re.search(rf"^│ {name} ", said.out, re.MULTILINE) for name in COMMANDS)
    assert "Start with: python -m simulations run demo" in said.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_teaches_with_examples_that_are_in_order(name: str) -> None:
    said = call(name, "--help")
    assert said.code == 0
    examples = re.findall(r"^ +python -m simulations (.*?) *$", said.out, re.MULTILINE)
    assert examples
    command: Any = typer.main.get_command(app)
    for example in examples:
        word, *rest = shlex.split(example.partition(" > ")[0])
        assert word == name
        found = command.commands[name].make_context(name, rest).params
        settings = [word for word in found.get("overrides") or [] if "=" in word]  # a folder after 'show privacy' is none
        if settings:
            load("movielens", settings)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("runn", ["run"]),
        ("resum", ["resume"]),
        ("movielens", ["run movielens"]),
        ("movilens", ["run movielens"]),
        ("rounds=5", ["run rounds=5"]),
        ("qqqq", []),
    ],
)
def test_a_word_that_is_no_command_is_answered_with_what_may_be_meant(word: str, meant: list[str]) -> None:
    assert usage.meant(word, list(COMMANDS)) == meant


def test_a_run_of_flower_is_left_to_flower(world: World, here: Path) -> None:
    assert run(world, here / "run", "rounds=1", "personalize=0").code == 0
    (here / "run" / "flower.json").write_text('{"run": "1"}')
    assert "go on with it by flwr run" in call("resume", here / "run").err
    said = call("export", here / "run", "u1", "--out", "mine")
    assert (said.code, "on the node" in said.err) == (2, True)
    assert not (here / "mine").exists()


def test_an_error_of_ours_keeps_its_traceback(world: World, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("client.base.load", breaks)
    with pytest.raises(RuntimeError, match="a bug"):
        run(world, here / "run")


def test_what_is_run_where_nothing_is_named_trains_under_a_guarantee_and_one_word_changes_it() -> None:
    for settings, guarantee in (((), "example"), (("privacy=off",), "'off'"), (("privacy=user",), "user"), (("privacy=both",), "both")):
        said = call("show", "demo", *settings)
        assert said.code == 0 and f"guarantee: {guarantee}\n" in said.out
    assert call("show").out == call("show", "demo").out
    assert "rounds must be at least 1" in call("run", "rounds=0").err, "the scenario may be left out"


def test_a_base_in_bfloat16_is_trained_on_scored_and_exported(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = call("run", "movielens", *world.settings, "rounds=1", "model.dtype=bfloat16", "--out", run)
    assert said.code == 0, said.err
    assert call("export", run, "u1", "--out", tmp_path / "u1").code == 0
    assert json.loads((run / "summary.json").read_text())["rows"]["shared_private"]["mean"] > 0
