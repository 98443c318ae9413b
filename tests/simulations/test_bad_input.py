"""Whatever a person gets wrong is one sentence on stderr, exit code 2, and nothing new on disk."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.simulations.command import Said, call, process, tree
from tests.simulations.conftest import World


def nothing(_here: Path) -> None:
    """Everything is in place."""


def writes(name: str, text: str) -> Callable[[Path], None]:
    """A file that is there before."""

    def before(here: Path) -> None:
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)

    return before


def broken_checkpoint(here: Path) -> None:
    """A run that names tensors which are not there."""
    writes("own/scenario.yaml", "rounds: 1")(here)
    writes("own/checkpoint.json", '{"round": 1, "tensors": "shared-000001.safetensors"}')(here)


@dataclass(frozen=True)
class Case:
    """A command ({run}: a finished run, {world}: model and users, RUN: a valid command to which settings are added)."""

    command: str
    says: tuple[str, ...]  # in this order
    before: Callable[[Path], None] = nothing


GOOD = '{"user": "u1", "prompt": "w1", "label": "yea"}\n'
CASES = {
    # ------------------------------------------------------------ the command itself
    "unknown command": Case("runn demo", ("unknown command 'runn'", "did you mean 'run'", "--help")),
    "a scenario for a command": Case("demo", ("unknown command 'demo'", "did you mean 'run demo'")),
    "a folder for a command": Case("{run}", ("unknown command", "did you mean 'show {run}' or 'resume {run}'")),
    "unknown option": Case("compare {run} --uot x", ("unknown option '--uot'", "simulations compare --help")),
    "a setting with dashes": Case("run demo --rounds 5", ("unknown option '--rounds'", "without dashes, rounds=VALUE")),
    "missing argument": Case("resume", ("missing argument 'FOLDER'", "simulations resume --help")),
    "missing option": Case("export {run} u1", ("missing option '--out'", "simulations export --help")),
    "option without a value": Case("run demo --out", ("option '--out' requires an argument",)),
    "option of another type": Case("show {run} --users many", ("'--users'", "'many'")),
    "one argument too many": Case("list all", ("unexpected extra argument (all)",)),
    # ------------------------------------------------------------ the scenario
    "unknown scenario": Case("run movilens", ("no scenario 'movilens'", "did you mean 'movielens'")),
    "missing scenario file": Case("run mine.yml", ("no scenario 'mine.yml'", "'mine.yaml'"), writes("mine.yaml", "rounds: 1")),
    "broken scenario file": Case("run mine.yaml", ("mine.yaml is not YAML: line 2",), writes("mine.yaml", "rounds: 1\n  seed: 2")),
    "scenario file without keys": Case("run mine.yaml", ("mine.yaml must hold key: value pairs",), writes("mine.yaml", "- rounds")),
    "unknown key in a file": Case("run mine.yaml", ("'shared.rnk'", "'shared.rank'"), writes("mine.yaml", "shared: {rnk: 2}")),
    "unknown key": Case("RUN shared.rnk=2", ("unknown key 'shared.rnk'", "did you mean 'shared.rank'")),
    "wrong type": Case("RUN rounds=many", ("rounds must be a whole number", "'many'")),
    "impossible value": Case("RUN private.rank=0", ("private.rank must be at least 1", "got 0")),
    "value that is none of the few": Case("RUN weights=exampels", ("weights", "did you mean 'examples'")),
    "a word for a list": Case("RUN controls=base", ("controls must be a list", "controls=[base]")),
    "a word for a group": Case("RUN shared=lora", ("shared must be a group of keys", "rank")),
    "malformed override": Case("RUN rounds", ("override 'rounds' must be written key=value",)),
    "override that is no YAML": Case("RUN data.labels=[yes", ("override 'data.labels=[yes' cannot be read",)),
    # ------------------------------------------------------------ names in registries
    "unknown scheme": Case("RUN scheme=dul", ("unknown scheme 'dul'", "did you mean 'dual'")),
    "unknown aggregator": Case("RUN aggregator=fedavg", ("unknown aggregator 'fedavg'", "did you mean 'fedavgm'")),
    "unknown aggregator option": Case("RUN aggregator_options.momentm=0.5", ("momentm",)),
    "unknown strategy of Flower": Case("RUN aggregator=flower.FedYogii", ("'flower.FedYogii'", "'flower.FedYogi'")),
    "unknown control": Case("RUN controls=[bse]", ("controls", "'bse'", "did you mean 'base'")),
    "unavailable device": Case("RUN engine.device=cuda:99", ("engine.device 'cuda:99' is not available here",)),
    "unknown benchmark": Case("bench --only fused_vs_poled", ("unknown benchmark", "did you mean 'fused_vs_pooled'")),
    # ------------------------------------------------------------ the model
    "unknown model": Case("RUN model.name=smollm", ("unknown model 'smollm'", "smollm2-135m")),
    "missing model path": Case("RUN model.name={world}/modell", ("model.name '{world}/modell' does not exist", "'{world}/model'")),
    "a folder that is no model": Case("RUN model.name={world}/users", ("model.name '{world}/users' could not be loaded",)),
    "unknown target module": Case("RUN shared.targets=[q_prj]", ("shared.targets: 'q_prj'", "did you mean 'q_proj'")),
    # ------------------------------------------------------------ the data
    "unknown data source": Case("RUN data.name=filez", ("data", "'filez'", "did you mean 'files'")),
    "missing data file": Case("RUN data.path={world}/userz", ("data.path '{world}/userz' does not exist", "did you mean 'users'")),
    "broken JSON line": Case("RUN data.path=own.jsonl", ("'own.jsonl' row 2 is not JSON",), writes("own.jsonl", GOOD + "{")),
    "unknown column": Case("RUN data.fields.label=lable", ("no column 'lable' (data.fields.label)", "did you mean 'label'")),
    "a label that is not asked for": Case("RUN data.labels=[yea,navy]", ("label 'nay'", "data.labels", "did you mean 'navy'")),
    "labels that YAML turns into true and false": Case("RUN data.labels=[yes,no]", ("data.labels", "put quotes around them")),
    "more users than there are": Case("RUN data.users=70", ("data.users=70", "only 7 of 7")),
    # ------------------------------------------------------------ folders
    "resume of no run": Case("resume {world}/users", ("{world}/users holds no run", "no scenario.yaml")),
    "resume of a folder that is near": Case("resume {run}y", ("{run}y holds no run", "did you mean '{run}'")),
    "resume with another result": Case("resume {run} rounds=9", ("{run} holds a run of another scenario", "rounds is 3 there")),
    "out folder of another scenario": Case("RUN seed=5 --out {run}", ("{run} holds a run of another scenario", "--out")),
    "out folder that is a file": Case("RUN --out {run}/users.csv", ("{run}/users.csv is a file",)),
    "out folder under a file": Case("RUN --out {run}/users.csv/x", ("{run}/users.csv/x: Not a directory",)),
    "show of nothing": Case("show demoo", ("unknown run or scenario 'demoo'", "did you mean 'demo'")),
    "compare with no run": Case("compare {run} {world}/users", ("{world}/users holds no run",)),
    "a run whose scenario is broken": Case("resume own", ("own/scenario.yaml", "'rnds'"), writes("own/scenario.yaml", "rnds: 1")),
    "a run whose checkpoint is broken": Case("resume own", ("own/checkpoint.json cannot be resumed from",), broken_checkpoint),
    "export of an unknown user": Case("export {run} u99 --out x", ("{run} has no user 'u99'",)),
    "export of a user that is near": Case("export {run} U1 --out x", ("{run} has no user 'U1'", "did you mean 'u1'")),
    "export of no run": Case("export nope u1 --out x", ("nope holds no run",)),
    "export into a folder in use": Case("export {run} u1 --out {world}/users", ("{world}/users exists and is not empty",)),
}  # fmt: skip


def words(case: Case, world: World) -> list[str]:
    """The words of a case's command."""
    text = case.command.format(run=world.run, world=world.folder)
    valid = shlex.join(["run", "movielens", *world.settings])
    return shlex.split(text.replace("RUN", f"{valid} --out mine" if "--out" not in text else valid, 1))


def assert_one_sentence(said: Said, case: Case, world: World) -> None:
    """What a person sees of it."""
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.err.endswith("\n")
    assert not re.search(r"[.!?] [A-Z]", said.err), "more than one sentence"
    assert "Traceback" not in said.out + said.err
    assert re.search(".*".join(re.escape(part.format(run=world.run, world=world.folder)) for part in case.says), said.err), said.err


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_and_leaves_nothing(name: str, world: World, here: Path) -> None:
    case = CASES[name]
    case.before(here)
    before = tree(here.parent, world.folder)
    assert_one_sentence(call(*words(case, world)), case, world)
    assert tree(here.parent, world.folder) == before


@pytest.mark.parametrize("name", ["unknown key", "missing data file"])
def test_a_process_of_its_own_says_the_same(name: str, world: World, here: Path) -> None:
    case, before = CASES[name], tree(here.parent, world.folder)
    running = process(*words(case, world))
    out, err = running.communicate(timeout=120)
    assert_one_sentence(Said(running.returncode, out, err), case, world)
    assert tree(here.parent, world.folder) == before
