"""The scenario: everything that decides the result of a run, typed and frozen.

Defaults live here; a YAML file holds only what differs; ``key=value`` overrides come last. What cannot change the
result (device, width of a pass, caches) sits apart in `Engine` and is left out of the scenario's hash.
"""

import copy
import functools
import hashlib
import json
import math
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs import reading
from configs.checks import check
from configs.errors import InputError, nearest
from configs.life import Life
from configs.plain import plain
from configs.wire import Wire

HERE = Path(__file__).resolve().parent
MARK = re.compile(r"[0-9a-f]{16}(:[0-9]+)?")


def _require(ok: bool, name: str, rule: str, value: object) -> None:
    if not ok:
        raise InputError(f"{name} must be {rule}, got {value!r}")


def _budget(group: str, epsilon: float, delta: float) -> None:
    _require(0 < epsilon < math.inf, f"{group}.epsilon", "positive and finite", epsilon)
    _require(0 < delta < 0.1, f"{group}.delta", "above 0 and below 0.1", delta)


@dataclass(frozen=True)
class Model:
    """The frozen base model."""

    name: str = "smollm2-135m"  # the embedded default, a hub name or a local path
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the frozen base; adapters are always float32


@dataclass(frozen=True)
class Adapter:
    """One adapter, the way PEFT names its targets.

    ``targets``: ``["all-linear"]`` or suffixes of module names. ``layers``: how many of the top layers carry it (0: all).
    """

    kind: Literal["lora", "core", "mixed", "ia3", "prompt", "late_prompt"] = "lora"
    rank: int = 8  # of LoRA, or the r of an r x r core
    alpha: float = 16.0  # LoRA's scale is alpha / rank
    targets: tuple[str, ...] = ("all-linear",)
    layers: int = 2  # counted from the top; 0: all of them
    tokens: int = 8  # length of a soft prompt, or of a late one, which enters below the top ``layers``
    factors: Literal["svd", "random", "fisher"] = "svd"  # frozen factors of a core: see client/adapters/core.py

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "rank", "at least 1", self.rank)
        _require(0 < self.alpha < math.inf, "alpha", "positive and finite", self.alpha)
        _require(self.tokens >= 1, "tokens", "at least 1", self.tokens)
        _require(self.layers >= 0, "layers", "0 (all) or a count of top layers", self.layers)
        _require(len(self.targets) > 0, "targets", "a list of module name suffixes, or ['all-linear']", self.targets)


@dataclass(frozen=True)
class Fields:
    """Where a table or a JSON Lines file keeps what a task needs: our word -> the column's name."""

    user: str = "user"  # not needed where every user has a file
    text: str = "text"
    prompt: str = "prompt"
    answer: str = "answer"
    label: str = "label"
    time: str = ""  # empty: the order of the file is the order in time


@dataclass(frozen=True)
class Data:
    """Users and their examples. Splits are per user and by time."""

    name: str = "movielens"  # a registered source, or "files" with a path
    path: str = ""  # a folder of <user>.jsonl, or one .jsonl, .csv, .parquet file or datasets folder
    task: Literal["", "text", "answer", "choice"] = ""  # empty: what the source is made for
    labels: tuple[str, ...] = ()  # choice: the answers among which the model chooses
    fields: Fields = field(default_factory=Fields)
    users: int = 0  # how many users take part; 0: all that qualify
    unseen_users: int = 0  # further users that are never trained on
    min_examples: int = 10  # a user with fewer is left out
    max_examples: int = 0  # the latest so many per user are kept; 0: all
    max_tokens: int = 128  # an example is cut to so many tokens; long texts become several examples
    max_chunks: int = 0  # of one text at most so many, evenly spread over it; 0: all
    train: float = 0.7  # share of each user's examples, the earliest
    validation: float = 0.1  # the next; the rest is the test split
    without: tuple[str, ...] = ()  # marks of users, or of their units as MARK:UNIT, that were forgotten: see 'forget'

    def __post_init__(self) -> None:
        for said in self.without:
            _require(bool(MARK.fullmatch(said)), "data.without", "16 hexadecimal digits, or these with :UNIT", said)
        for name in ("users", "unseen_users", "max_examples", "max_chunks"):
            _require(getattr(self, name) >= 0, f"data.{name}", "0 or more", getattr(self, name))
        _require(self.min_examples >= 3, "data.min_examples", "at least 3 (one per split)", self.min_examples)
        _require(self.max_tokens >= 2, "data.max_tokens", "at least 2", self.max_tokens)
        _require(0 < self.train < 1, "data.train", "between 0 and 1", self.train)
        _require(
            self.validation >= 0 and self.train + self.validation < 1,
            "data.validation",
            "0 or more and below 1 - data.train",
            self.validation,
        )


@dataclass(frozen=True)
class Local:
    """Training on a node, for one of the two adapters."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    momentum: float = 0.0  # of sgd
    epochs: int = 1  # over a user's training examples, each time the adapter's turn comes
    batch: int = 8  # examples of one user per step
    weight_decay: float = 0.0  # towards the start of the phase, not towards zero
    prior: float = 0.0  # (prior / 2n) |theta - start|^2 beside a mean loss over n examples; a step of sgd is lr / (1 + prior / n)
    max_norm: float = 1.0  # L2 clip of one user's gradient; 0: none
    early_stopping: bool = False  # keep the epoch that is best on the user's own validation split (the start included)

    def __post_init__(self) -> None:
        _require(0 <= self.lr < math.inf, "lr", "0 or more and finite", self.lr)
        _require(self.epochs >= 0, "epochs", "0 or more", self.epochs)
        _require(self.batch >= 1, "batch", "at least 1", self.batch)
        _require(0 <= self.momentum < 1, "momentum", "0 or more and below 1", self.momentum)
        _require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more and finite", self.weight_decay)
        _require(0 <= self.prior < math.inf, "prior", "0 or more and finite", self.prior)
        _require(self.max_norm >= 0, "max_norm", "0 (none) or positive", self.max_norm)


@dataclass(frozen=True)
class ExampleLevel:
    """Guarantee E: all that a user's node lets out, with the private adapter, is (epsilon, delta)-DP in any one of the user's examples.

    The neighbour of a user's data has nothing in one example's place: how many examples there are is not hidden. An example is
    the data's privacy unit: a rating, a document with all of its chunks.
    """

    epsilon: float = 8.0  # of a user's whole life, over all rounds and runs of a ledger
    delta: float = 1e-5
    shared_clip: float = 1.0  # L2 bound of what one example adds to a gradient of the shared adapter
    private_clip: float = 1.0  # and of the private one
    shares: dict[str, float] = field(default_factory=lambda: {"shared": 1.0, "private": 1.0, "final": 1.0})  # of the budget
    noised: tuple[str, ...] = ("shared", "private")  # what trains with noise; the guarantee needs both

    def __post_init__(self) -> None:
        _budget("example", self.epsilon, self.delta)
        for name in ("shared_clip", "private_clip"):
            _require(0 < getattr(self, name) < math.inf, f"example.{name}", "positive and finite", getattr(self, name))
        for name, value in self.shares.items():
            if name not in ("shared", "private", "final"):
                raise InputError(f"example.shares.{name} is no part{nearest(name, ('shared', 'private', 'final'))}")
            _require(0 < value < math.inf, f"example.shares.{name}", "positive and finite", value)
        _require(set(self.noised) <= {"shared", "private"}, "example.noised", "of shared and private", self.noised)


@dataclass(frozen=True)
class UserLevel:
    """Guarantee U: all that is released is (epsilon, delta)-joint DP in the whole data of any one user.

    The neighbour of a federation has a user who sends nothing. The user's own private adapter is not covered.
    """

    epsilon: float = 8.0
    delta: float = 1e-5
    mechanism: Literal["gaussian", "adaptive", "banded", "local"] = "gaussian"
    clip: float = 1.0  # L2 bound of a user's whole update; adaptive: where it begins
    quantile: float = 0.5  # adaptive: share of users' updates that the bound is to leave as they are

    def __post_init__(self) -> None:
        _budget("user", self.epsilon, self.delta)
        _require(0 < self.clip < math.inf, "user.clip", "positive and finite", self.clip)
        _require(0 < self.quantile < 1, "user.quantile", "between 0 and 1", self.quantile)


@dataclass(frozen=True)
class Masking:
    """How a round's sum is made under masks where ``privacy.secure`` is on. A party is a node, with all of its users."""

    nodes: int = 10  # of a simulation: its users are dealt out over so many; over Flower nodes are what they are
    threshold: float = 0.7  # share of a round's nodes that must be left at its end; with fewer the round gives nothing
    colluding: float = 0.0  # share of a round's nodes that may tell the server all they know; guarantee U counts on no noise of theirs
    neighbours: int = 0  # nodes with which each node shares secrets; 0: all others

    def __post_init__(self) -> None:
        _require(2 <= self.nodes <= 2000, "masking.nodes", "between 2 and 2000", self.nodes)
        _require(0.5 < self.threshold <= 1, "masking.threshold", "above 0.5 and at most 1", self.threshold)
        _require(0 <= self.colluding < self.threshold, "masking.colluding", "0 or more and below masking.threshold", self.colluding)
        _require(self.neighbours >= 0, "masking.neighbours", "0 (all others) or a count", self.neighbours)


@dataclass(frozen=True)
class Privacy:
    """What is promised. ``privacy=user`` is short for ``privacy.guarantee=user``."""

    # example, user: the two guarantees; both: two numbers; unclaimed: noise as the groups say, and no guarantee; off: no noise
    guarantee: Literal["off", "example", "user", "both", "unclaimed"] = "off"
    accountant: Literal["pld", "prv", "rdp", "gdp"] = "pld"  # gdp is known so that it can be refused with its reason
    example: ExampleLevel = field(default_factory=ExampleLevel)
    user: UserLevel = field(default_factory=UserLevel)
    secure: bool = False  # nodes send their users' updates under masks that fall off the sum only: the server sees no node's own
    masking: Masking = field(default_factory=Masking)
    waive: tuple[str, ...] = ()  # of scores and counters: what a deployment lets out although no guarantee covers it

    def __post_init__(self) -> None:
        for name in self.waive:
            if name not in ("scores", "counters"):
                raise InputError(f"privacy.waive: '{name}' is not known{nearest(name, ('scores', 'counters'))}")

    @property
    def of_examples(self) -> bool:
        """Whether training is guarded example by example."""
        return self.guarantee in ("example", "both", "unclaimed")

    @property
    def promises(self) -> bool:
        """Whether any guarantee is claimed."""
        return self.guarantee not in ("off", "unclaimed")

    @property
    def promises_examples(self) -> bool:
        """Whether guarantee E is claimed."""
        return self.guarantee in ("example", "both")

    @property
    def of_users(self) -> bool:
        """Whether what is released is guarded user by user."""
        return self.guarantee in ("user", "both")


@dataclass(frozen=True)
class Engine:
    """What cannot change the result: where and how wide a pass runs."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    threads: int = 0  # CPU threads; 0: torch's choice
    tokens_per_pass: int = 2048  # a fused pass holds at most so many tokens
    memory_mb: int = 0  # or what fits in so many MiB beside the base; 0: no such limit
    cache: Literal["none", "memory", "disk"] = "memory"  # of activations below the lowest adapter
    cache_mb: int = 2048  # bound of that cache
    checkpointing: bool = False  # recompute activations in the backward pass

    def __post_init__(self) -> None:
        _require(self.tokens_per_pass >= 1, "engine.tokens_per_pass", "at least 1", self.tokens_per_pass)
        for name in ("threads", "memory_mb", "cache_mb"):
            _require(getattr(self, name) >= 0, f"engine.{name}", "0 or more", getattr(self, name))


@dataclass(frozen=True)
class Scenario:
    """One run. Equal scenarios give equal runs."""

    name: str = "run"
    seed: int = 0
    rounds: int = 10
    users_per_round: int = 0  # 0: everyone, every round
    # fixed: drawn anew, without replacement; cyclic: in turns, all before anyone twice; poisson: each user by a coin of their own
    sampling: Literal["fixed", "cyclic", "poisson"] = "fixed"
    scheme: str = "dual"
    scheme_options: dict[str, float] = field(default_factory=dict)
    private_from: int = 0  # in so many rounds only the shared adapter trains (schemes with both); more than rounds is all of them
    personalize: int = 0  # extra epochs of the private adapter after the last round, the shared one frozen
    aggregator: str = "fedit"
    aggregator_options: dict[str, float] = field(default_factory=dict)
    root_users: tuple[str, ...] = ()  # whose data is the server's own: asked every round, by aggregators that weigh the others by them
    weights: Literal["examples", "uniform"] = "examples"  # of users in the aggregate
    max_release_norm: float = 1e4  # a release above this L2 norm is dropped and counted; under privacy.secure it is scaled down to it
    evaluate_every: int = 1  # rounds between evaluations on the validation split, and after the last; 0: none
    evaluate_along: bool = False  # score with the next round's training and not in an exchange of its own: whoever is asked, before it
    controls: tuple[str, ...] = ("base", "majority", "user_bias", "shared", "shared_private", "shuffled")
    model: Model = field(default_factory=Model)
    shared: Adapter = field(default_factory=Adapter)
    # of users whose devices differ: each has one of these ranks of the shared LoRA; empty: shared.rank
    shared_ranks: tuple[int, ...] = ()
    private: Adapter = field(default_factory=Adapter)
    shared_training: Local = field(default_factory=Local)
    private_training: Local = field(default_factory=Local)
    data: Data = field(default_factory=Data)
    privacy: Privacy = field(default_factory=Privacy)
    wire: Wire = field(default_factory=Wire)
    life: Life = field(default_factory=Life)
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        _require(self.name not in ("", ".", "..") and not set(self.name) & set("/\\\0"), "name", "fit to name a folder", self.name)
        _require(self.rounds >= 1, "rounds", "at least 1", self.rounds)
        _require(self.seed >= 0, "seed", "0 or more", self.seed)
        _require(self.users_per_round >= 0, "users_per_round", "0 (everyone) or a count", self.users_per_round)
        _require(self.private_from >= 0, "private_from", "0 or more", self.private_from)
        object.__setattr__(self, "private_from", min(self.private_from, self.rounds))
        _require(self.personalize >= 0, "personalize", "0 or more", self.personalize)
        _require(self.max_release_norm > 0, "max_release_norm", "positive", self.max_release_norm)
        _require(self.evaluate_every >= 0, "evaluate_every", "0 or more", self.evaluate_every)
        for rank in (ranks := self.shared_ranks):
            _require(1 <= rank <= self.shared.rank, "shared_ranks", f"between 1 and shared.rank={self.shared.rank}", rank)
        _require(not ranks or self.shared.kind == "lora", "shared_ranks", "empty unless shared.kind=lora", ranks)
        _require(self.shared.kind in ("lora", "core"), "shared.kind", "'lora' or 'core' (what can be averaged)", self.shared.kind)


def load(source: str | Path = "movielens", overrides: Sequence[str] = ()) -> Scenario:
    """Read a scenario: a name in `configs/`, or a YAML file, then ``key=value`` overrides.

    Another aggregator or scheme begins with its own options, not with those that the file has for the one it names.
    Raises `InputError` for an unknown key, a wrong type or an impossible value.
    """
    path = _path(source)
    return copy.deepcopy(_load(path, reading.text(path), tuple(overrides)))


@functools.lru_cache(maxsize=32)
def _load(path: Path, text: str, overrides: tuple[str, ...]) -> Scenario:
    """Files of runs are read again and again; what is wrong is not kept, and so is said again."""
    tree, changes = _known(reading.tree(path, text)), [_known(reading.override(item)) for item in overrides]
    for key, default in (("aggregator", Scenario.aggregator), ("scheme", Scenario.scheme)):
        named = tree.get(key, default)
        if any(change.get(key, named) != named for change in changes):
            tree.pop(f"{key}_options", None)
    return build(OmegaConf.merge(tree, *changes))


def build(tree: Any) -> Scenario:
    """Turn a mapping or an OmegaConf tree into a `Scenario`, checking names, types and values."""
    try:
        tree = tree if isinstance(tree, DictConfig) else OmegaConf.create(tree)
        said = typing.cast(dict[str, Any], OmegaConf.to_container(_spelt_out(tree), resolve=True))
        check(said, Scenario)
        return reading.typed(said, Scenario)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        raise InputError(f"{key}: {reason}" if key else reason) from None


def to_yaml(scenario: Scenario) -> str:
    """The whole resolved scenario as YAML; `load` reads it back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(plain(scenario, Scenario)))


LATE = ("scheme_options", "shared_ranks", "root_users", "evaluate_along")  # what came later, and says nothing, changes no digits
LATE_OF_LIFE = ("train", "detector", "detector_options")


def scenario_hash(scenario: Scenario) -> str:
    """Twelve hexadecimal digits over all that can change the result (not `Engine`, not the name). Equal scenarios, equal digits."""
    tree: Any = plain(scenario, Scenario)
    late = [key for key in LATE if not tree[key]] + ["wire"] * (scenario.wire == Wire()) + ["life"] * (scenario.life == Life())
    for key in LATE_OF_LIFE if scenario.life.train == "always" else ():
        del tree["life"][key]
    for key in ("engine", "name", *late):
        del tree[key]
    if not scenario.data.without:
        del tree["data"]["without"]
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=6).hexdigest()


def label(scenario: Scenario) -> str:
    """What a run of the scenario is called: its name and its digits."""
    return f"{scenario.name}-{scenario_hash(scenario)}"


def _path(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        path = HERE / f"{source}.yaml"
    if not path.is_file():
        named = [p.stem for p in HERE.glob("*.yaml")]
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent != HERE else []
        raise InputError(f"no scenario '{source}'{nearest(Path(source).name, [*named, *beside])}")
    return path


def _known(tree: DictConfig) -> DictConfig:
    """The tree spelt out. Raises `InputError` for a name that no scenario has."""
    tree = _spelt_out(tree)
    check(typing.cast(dict[str, Any], OmegaConf.to_container(tree)), Scenario)
    return tree


def _spelt_out(tree: DictConfig) -> DictConfig:
    """``privacy: user`` is short for ``privacy: {guarantee: user}``, and YAML reads an unquoted off as false."""
    if isinstance(tree.get("privacy"), str | bool):
        tree = typing.cast(DictConfig, OmegaConf.merge(tree, {"privacy": None}, {"privacy": {"guarantee": tree["privacy"]}}))
    if OmegaConf.select(tree, "privacy.guarantee") is False:
        tree["privacy"]["guarantee"] = "off"
    return tree
