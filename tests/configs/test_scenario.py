"""A scenario is what its defaults, its file and its overrides say, in this order; whatever else is said is refused by name."""

import copy
import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from configs import checks
from configs.errors import InputError, nearest
from configs.scenario import HERE, Adapter, Data, Engine, Local, Scenario, build, load, scenario_hash, to_yaml

DEMO = load("demo")
HASH = scenario_hash(DEMO)
LEAVES = [path for path in checks.paths(Scenario) if not dataclasses.is_dataclass(typing.get_type_hints(Scenario).get(path))]
GROUPS = ("data.fields", "privacy.example", "privacy.user", "privacy.masking")
LEAVES = [path for path in LEAVES if path not in GROUPS]


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


# ------------------------------------------------------------------ where a value comes from
def test_what_nobody_says_is_the_default_of_the_dataclass(tmp_path: Path) -> None:
    assert load(written(tmp_path, "")) == Scenario()
    assert build({}) == Scenario()


def test_a_file_changes_defaults_and_overrides_change_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "rounds: 7\nseed: 3\nshared: {rank: 2, alpha: 4.0}\ncontrols: [base, shared]\n")
    chosen = load(path, ["rounds=9", "shared.rank=5", "controls=[shared]"])
    assert chosen == Scenario(rounds=9, seed=3, shared=Adapter(rank=5, alpha=4.0), controls=("shared",))


def test_of_two_overrides_the_last_one_counts() -> None:
    assert load("movielens", ["shared.rank=2", "shared.alpha=3", "shared.rank=4"]).shared == Adapter(rank=4, alpha=3.0)


def test_another_aggregator_does_not_inherit_the_options_of_the_one_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("aggregator: fedadam\naggregator_options: {lr: 0.5, tau: 0.1}\n")
    assert load(path, ["rounds=3", "aggregator=fedadam", "aggregator_options.lr=0.2"]).aggregator_options == {"lr": 0.2, "tau": 0.1}
    assert load(path, ["aggregator=fedit"]).aggregator_options == {}
    assert load(path, ["aggregator_options.beta=0.7", "aggregator=fedavgm"]).aggregator_options == {"beta": 0.7}
    bare = tmp_path / "bare.yaml"
    bare.write_text("aggregator_options: {lr: 0.5}\n")
    assert load(bare, ["aggregator=fedit"]).aggregator_options == {"lr": 0.5}, "the file's options are for fedit, which is the default"


def test_an_override_is_read_as_yaml() -> None:
    chosen = load(
        "movielens", ["private_training.lr=1e-4", 'data.labels=["yes","no"]', "aggregator_options.momentum=1", "data.path=a b=c"]
    )
    assert chosen.private_training.lr == 1e-4
    assert chosen.data.labels == ("yes", "no")
    assert chosen.aggregator_options == {"momentum": 1.0}
    assert chosen.data.path == "a b=c"


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("*.yaml")))
def test_every_scenario_of_the_project_loads_by_name_and_bears_it(name: str) -> None:
    assert load(name).name == name
    assert load(HERE / f"{name}.yaml") == load(name)


def test_a_scenario_cannot_be_changed() -> None:
    chosen: Any = load("movielens")
    for group, name in ((chosen, "rounds"), (chosen.shared, "rank"), (chosen.data.fields, "user"), (chosen.engine, "device")):
        with pytest.raises(FrozenInstanceError):
            setattr(group, name, 1)
    assert isinstance(chosen.controls, tuple)
    assert isinstance(chosen.shared.targets, tuple)


# ------------------------------------------------------------------ there and back, and the hash
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: "${" not in text and text != "???")
NAME = TEXT.filter(lambda text: text not in ("", ".", "..") and not set(text) & set("/\\\0"))


@settings(deadline=None, max_examples=12)
@given(NAME, TEXT, st.lists(TEXT, max_size=3), st.floats(1e-30, 1e30), st.integers(0, 2**70), st.dictionaries(NAME, st.floats(-9, 9)))
def test_what_is_written_reads_back_as_an_equal_scenario(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    path: str,
    labels: list[str],
    alpha: float,
    seed: int,
    options: dict[str, float],
) -> None:
    data, shared = Data(path=path, labels=tuple(labels)), Adapter(alpha=alpha)
    chosen = Scenario(name=name, seed=seed, data=data, shared=shared, aggregator_options=options)
    again = load(written(tmp_path_factory.mktemp("round"), to_yaml(chosen)))
    assert again == chosen
    assert scenario_hash(again) == scenario_hash(chosen)


def test_it_is_written_and_hashed_as_omegaconf_types_it() -> None:
    chosen = replace(DEMO, shared=Adapter(alpha=4, targets=("q_proj",)), shared_ranks=(1, 2), scheme_options={"lam": 1})
    assert to_yaml(chosen) == OmegaConf.to_yaml(OmegaConf.structured(chosen))
    assert "alpha: 4.0\n" in to_yaml(chosen) and "lam: 1.0\n" in to_yaml(chosen)
    assert scenario_hash(chosen) == scenario_hash(build(OmegaConf.structured(chosen)))


def test_no_scenario_begins_with_what_another_one_said() -> None:
    first = build({"aggregator_options": {"lr": 1.0}, "shared": {"rank": 3}, "privacy": {"example": {"shares": {"final": 2.0}}}})
    first.aggregator_options["beta"] = first.privacy.example.shares["shared"] = 7.0
    assert build({}) == Scenario() != first


def test_a_file_that_has_changed_is_read_again_and_what_was_read_is_the_readers_own(tmp_path: Path) -> None:
    path = written(tmp_path, "aggregator_options: {lr: 0.5}\n")
    first = load(path)
    first.aggregator_options["lr"] = 9.0
    assert load(path).aggregator_options == {"lr": 0.5}
    written(tmp_path, "aggregator_options: {lr: 0.7}\n")
    assert load(path).aggregator_options == {"lr": 0.7}


def test_the_written_scenario_leaves_nothing_unsaid() -> None:
    text = to_yaml(DEMO)
    assert all(f"{path.rpartition('.')[2]}:" in text for path in checks.paths(Scenario))


def changed(value: Any, hint: Any) -> Any:
    """Another value of the same type."""
    if typing.get_origin(hint) is typing.Literal:
        return next(other for other in typing.get_args(hint) if other != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    another = 1 if hint == tuple[int, ...] else "x"
    return (*value, another) if isinstance(value, tuple) else {**value, "x": 1.0}


def with_another(scenario: Scenario, path: str) -> Scenario:
    """The scenario with one field changed, whatever the checks of values say."""
    scenario = copy.deepcopy(scenario)
    *groups, name = path.split(".")
    owner: Any = scenario
    for group in groups:
        owner = getattr(owner, group)
    object.__setattr__(owner, name, changed(getattr(owner, name), typing.get_type_hints(type(owner))[name]))
    assert scenario != DEMO
    return scenario


@pytest.mark.parametrize("path", LEAVES)
def test_the_hash_sees_every_field_but_the_engine_and_the_name(path: str) -> None:
    apart = path == "name" or path.startswith("engine.")
    assert (scenario_hash(with_another(DEMO, path)) == HASH) == apart


def test_equal_scenarios_have_equal_hashes_and_twelve_digits() -> None:
    whole, real = (
        Scenario(shared=Adapter(alpha=4), aggregator_options={"lr": 1}),
        Scenario(shared=Adapter(alpha=4.0), aggregator_options={"lr": 1.0}),
    )
    assert whole == real
    assert (
        scenario_hash(whole) == scenario_hash(real) == scenario_hash(build({"shared": {"alpha": 4}, "aggregator_options": {"lr": 1}}))
    )
    assert len(scenario_hash(whole)) == 12
    assert int(scenario_hash(whole), 16) >= 0


# ------------------------------------------------------------------ what is refused
def refusals() -> Iterator[tuple[str, str]]:
    """(override, what the sentence says)."""
    yield "rnds=3", "unknown key 'rnds' (did you mean 'rounds'?)"
    yield "shared.rnk=3", "unknown key 'shared.rnk' (did you mean 'shared.rank'?)"
    yield "data.fields.usr=x", "unknown key 'data.fields.usr' (did you mean 'data.fields.user'?)"
    yield "rank=3", "unknown key 'rank' (did you mean 'shared.rank' or 'private.rank'?)"
    yield "users=5", "unknown key 'users' (did you mean 'data.users'?)"
    yield "model.lr=3", "unknown key 'model.lr' (did you mean 'shared_training.lr' or 'private_training.lr'?)"
    yield "engine.qqqqq=3", "unknown key 'engine.qqqqq' (known: cache, cache_mb, checkpointing, device, memory_mb"
    yield "rounds=many", "rounds must be a whole number, got 'many'"
    yield "rounds=1.5", "rounds must be a whole number, got 1.5"
    yield "rounds=true", "rounds must be a whole number, got True"
    yield "rounds=", "rounds must be a whole number, got nothing"
    yield "rounds.x=1", "rounds must be a whole number, got {'x': 1}"
    yield "rounds=???", "rounds has no value"
    yield "shared_training.lr=fast", "shared_training.lr must be a number, got 'fast'"
    yield "shared_training.early_stopping=maybe", "shared_training.early_stopping must be true or false, got 'maybe'"
    yield "scheme=", "scheme must be a text, got nothing"
    yield "scheme=[dual]", "scheme must be a text, got ['dual']"
    yield "weights=exampels", "weights must be 'examples' or 'uniform', got 'exampels' (did you mean 'examples'?)"
    yield "data.task=chioce", "data.task must be empty, 'text', 'answer' or 'choice', got 'chioce' (did you mean 'choice'?)"
    yield "model.dtype=16", "model.dtype must be 'float32', 'bfloat16' or 'float16', got 16"
    yield "shared=8", "shared must be a group of keys (kind, rank, alpha, targets, layers, tokens, factors), got 8"
    yield "data=files", "data must be a group of keys"
    yield "data=files", "got 'files' (did you mean 'data.name=files'?)"
    yield "data.fields=x", "data.fields must be a group of keys (user, text, prompt, answer, label, time), got 'x'"
    yield "controls=base", "controls must be a list, got 'base' (did you mean 'controls=[base]'?)"
    yield "shared.targets={a: b}", "shared.targets must be a list, got {'a': 'b'}"
    yield "controls=[[base]]", "controls must be a list in which each is a text, got ['base']"
    yield "data.labels=[yes,no]", "data.labels must be a list in which each is a text, got True (YAML reads yes, no"
    yield "aggregator_options=3", "aggregator_options must be a group of values like {name: 0.5}, got 3"
    yield "aggregator_options.momentum=x", "aggregator_options.momentum must be a number, got 'x'"
    yield "rounds=0", "rounds must be at least 1, got 0"
    yield "seed=-1", "seed must be 0 or more, got -1"
    yield "private_from=-1", "private_from must be 0 or more, got -1"
    yield "name=a/b", "name must be fit to name a folder, got 'a/b'"
    yield "shared.kind=ia3", "shared.kind must be 'lora' or 'core' (what can be averaged), got 'ia3'"
    yield "shared.rank=0", "shared.rank must be at least 1, got 0"
    yield "private.rank=0", "private.rank must be at least 1, got 0"
    yield "private.alpha=.inf", "private.alpha must be positive and finite, got inf"
    yield "private.targets=[]", "private.targets must be a list of module name suffixes"
    yield "shared_training.lr=.nan", "shared_training.lr must be 0 or more and finite, got nan"
    yield "private_training.batch=0", "private_training.batch must be at least 1, got 0"
    yield "data.train=1", "data.train must be between 0 and 1, got 1.0"
    yield "data.validation=0.3", "data.validation must be 0 or more and below 1 - data.train, got 0.3"
    yield "data.min_examples=2", "data.min_examples must be at least 3 (one per split), got 2"
    yield "engine.threads=-1", "engine.threads must be 0 or more, got -1"
    yield "rounds", "override 'rounds' must be written key=value, e.g. rounds=5"
    yield "=5", "override '=5' must be written key=value"
    yield "shared..rank=5", "override 'shared..rank=5' must be written key=value"
    yield "data.labels=[a", "override 'data.labels=[a' cannot be read: did not find expected ',' or ']'"
    yield "name=${nope}", "name: Interpolation key 'nope' not found"
    yield "name=${", "override 'name=${' cannot be read: "


@pytest.mark.parametrize(("override", "says"), list(refusals()))
def test_a_wrong_override_is_refused_in_one_sentence_that_names_the_field(override: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        load("movielens", [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rnds: 3", "unknown key 'rnds' (did you mean 'rounds'?)"),
        ("shared: {rnk: 3}", "unknown key 'shared.rnk' (did you mean 'shared.rank'?)"),
        ("shared: big", "shared must be a group of keys"),
        ("controls: base", "controls must be a list, got 'base'"),
        ("rounds: [1]", "rounds must be a whole number, got [1]"),
        ("5: 3", "unknown key '5'"),
        ("rounds: 1\n  seed: 2", "is not YAML: line 2: mapping values are not allowed"),
        ("rounds: 1\nrounds: 2", "is not YAML: line 2: found duplicate key rounds"),
        ("- rounds", "must hold key: value pairs"),
        ("rounds", "rounds must be a whole number, got nothing"),
        ("rounds: ${nope}", "rounds: Interpolation key 'nope' not found"),
    ],
)
@pytest.mark.parametrize("overrides", [[], ["rounds=2", "controls=[base]"]], ids=["alone", "with overrides"])
def test_a_wrong_file_is_refused_in_one_sentence_that_names_the_field_or_the_line(
    tmp_path: Path, text: str, says: str, overrides: list[str]
) -> None:
    if "${" in text and overrides:
        overrides = ["seed=2"]  # it would take the wrong value's place
    with pytest.raises(InputError) as caught:
        load(written(tmp_path, text), overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    if says.startswith(("is not", "must hold")):
        assert str(caught.value).startswith(str(tmp_path / "mine.yaml"))


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    with pytest.raises(InputError, match=r"no scenario 'movilens' \(did you mean 'movielens'"):
        load("movilens")
    with pytest.raises(InputError, match=r"no scenario '.*mien.yaml' \(did you mean 'mine.yaml'"):
        load(tmp_path / "mien.yaml")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"mine.yaml cannot be read: 'utf-8' codec"):
        load(path)


def test_the_groups_check_themselves_also_where_no_file_is_read() -> None:
    for wrong in (lambda: Adapter(rank=0), lambda: Local(batch=0), lambda: Data(train=2.0), lambda: Engine(threads=-1)):
        with pytest.raises(InputError, match="must be"):
            wrong()
    with pytest.raises(InputError, match="rounds must be at least 1"):
        replace(Scenario(), rounds=0)


def test_the_nearest_name_is_given_or_all_names_where_none_is_near() -> None:
    assert nearest("Dul", ["dual", "fedsa"]) == " (did you mean 'dual'?)"
    assert nearest("zzz", ["dual", "fedsa"]) == " (known: dual, fedsa)"
    assert nearest("zzz", []) == ""


def test_private_from_beyond_the_last_round_is_the_last_round_so_that_rounds_can_be_set_alone() -> None:
    assert load("demo", ["rounds=10"]).private_from == 10
    assert load("demo", ["rounds=10"]) == load("demo", ["rounds=10", "private_from=10"])
