"""The contracts: what an aggregator and a scheme are, and the two messages between server and node."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from strategies.tree import State

Owner = Literal["shared", "private", "frozen"]
Block = Literal["shared", "private", "rest"]  # an adapter; "rest": what all others have, as one user sees it


@dataclass(frozen=True)
class Task:
    """Server to node: train these users from this shared adapter."""

    round: int  # counted from 1
    shared: State  # PEFT names -> float32 tensors
    turns: tuple[str, ...] = ("shared", "private")  # which phases of the scheme run in this round; ("final",): its last one
    epochs: int | None = None  # instead of the scenario's
    participations: int = 0  # in how many rounds of the run a user trains at most: what the privacy of each of them is planned for
    bound: float = 0.0  # L2, of each user's whole release under guarantee U; 0: none
    cohort: int = 0  # how many users are asked in this round
    everyone: int = 0  # and of how many they are; 0: not said
    rows: tuple[str, ...] = ()  # to be scored on the validation split before the training: strategies/riding.py


@dataclass(frozen=True)
class Release:
    """Node to server: the one message that may leave a node. What is not a field of it stays home.

    ``update`` is already multiplied by ``weight``, so that a node may add up its users' releases for a linear
    aggregator: the sum of releases is a release.
    """

    update: State  # weight * (trained - received), the aggregator's factors only
    weight: float  # sum of the users' weights
    users: int = 1  # how many users' releases were added up
    metrics: dict[str, float] = field(default_factory=dict)  # sums over users: tokens, steps, loss, seconds
    root: bool = False  # of the server's own users: the round loop says so and no message does


class Aggregator(NamedTuple):
    """A pure pair: how releases become the next shared adapter.

    ``init(shared) -> memory`` and ``apply(memory, shared, releases) -> (memory, shared)``; ``releases`` is consumed
    once, inputs are unchanged, names, shapes and dtypes of ``shared`` are kept. ``at_home(round, received, update) -> update``
    is what a node does to a user's update before it is weighted, clipped and sent; it sees all that the user received as shared, and
    of what the user trained only what is released.
    """

    init: Callable[[State], State]
    apply: Callable[[State, State, Iterable[Release]], tuple[State, State]]
    factors: Callable[[int], tuple[str, ...]]  # the LoRA factors that are trained and released in a round (from 1)
    linear: bool  # needs only the sum of releases: a node may send one sum
    paper: str
    exact: bool = False  # the aggregate is the ideal one, sum_k p_k B_k A_k
    invariant: bool = False  # the aggregate B A depends on the users' B_k A_k alone, not on how each is written as a product
    individual: bool = False  # must see each user's tensors
    mutates_base: bool = False  # part of what is learned goes into ``lora_delta``, which stands where a changed base would
    phases: int = 1  # exchanges per round
    hetero_rank: bool = False  # a release may have fewer ranks than the shared adapter
    paired: bool = False  # works on the two factors of a LoRA together: where both are not shared, there is nothing to do
    carried: tuple[str, ...] = ()  # factors that no user trains and the server changes, so that they are sent
    at_home: Callable[[int, State, State], State] | None = None
    pull: float = 0.0  # mu of a term mu/2 |theta - received|^2 in the loss of the phases that move what is shared
    per_user_down: bool = False
    rooted: bool = False  # weighs users by the release of the server's own ones (`Release.root`)
    controls: bool = False  # users correct their steps by control variates: strategies/aggregators/scaffold.py
    pairwise: bool = False  # its time grows with the square of the users
    stateful: bool = False  # has a memory that is checkpointed


def released(name: str, factors: Iterable[str]) -> bool:
    """Whether a shared tensor is trained and released where these LoRA factors are; what is no factor of a LoRA always is."""
    return ".lora_" not in name or any(f".{factor}." in name for factor in factors)


def as_it_is(state: State, _task: Task) -> State:
    """A phase begins with what the user has."""
    return state


def plainly(state: State) -> State:
    """What a user has is what is applied."""
    return state


def as_it_ended(_before: State, after: State) -> State:
    """A phase leaves what its training came to."""
    return after


class Phase(NamedTuple):
    """One turn of local training: which tensors move. The rest is applied and passes gradients, but stays.

    ``begin``, ``view`` and ``end`` are pure functions on what one user has, "block/name" -> tensor. A ``view`` is differentiated, and
    its tensors have one or two axes in front, of users and of their units.
    """

    name: Literal["shared", "private"]  # whose training settings (`Scenario.shared_training` or `.private_training`)
    moves: tuple[Owner, ...]
    part: Literal["all", "support", "query"] = "all"  # of a user's training examples: the earlier and the later ones
    fresh: bool = False  # what moves begins at its start, not where the user's last round ended
    applies: tuple[Block, ...] = ()  # the adapters that are applied; none named: all of the scheme's
    begin: Callable[[State, Task], State] = as_it_is  # (what the user has, the task) -> what training begins with
    view: Callable[[State], State] = plainly  # what is applied of it
    end: Callable[[State, State], State] = as_it_ended  # (before, after training) -> what the user has then
    pull: float = 0.0  # lambda of (lambda / 2) |theta - shared|^2: a copy of the shared adapter is held near what was received
    penalty: Callable[[State], State] | None = None  # what users have, [K, ...] -> what is added to gradients, by name, before the clip

    def applied(self, block: str) -> bool:
        """Whether one of the scheme's adapters is applied."""
        return not self.applies or block in self.applies


class Scheme(NamedTuple):
    """How the adapters are split between the federation and the user, and in which order they train."""

    blocks: tuple[Block, ...]  # adapters that exist
    owner: Callable[[str, str], Owner]  # (block, tensor name) -> who keeps it
    phases: tuple[Phase, ...]
    paper: str
    # After the last round, where a scenario asks to personalize; a user's own model is always what this phase applies.
    final: Phase = Phase("private", ("private",))
    twins: tuple[Block, ...] = ()  # adapters that are copies of the shared one; users who have none yet have what they received
    own: tuple[tuple[str, float], ...] = ()  # single numbers that a user keeps beside adapters: name -> start, as "private/name" [1]
    references: int = 0  # a text is weighed by its likeness to so many of the user's own, as "similarity" [1] in a view; 0: it is not
    clusters: int = 1  # so many shared adapters, of which each user trains the one that fits best: strategies/schemes/ifca.py
    needs: tuple[tuple[str, object], ...] = ()  # (field of the scenario, the value without which the scheme means nothing)


def personal(scheme: Scheme) -> bool:
    """Whether users keep anything of their own, which a last phase could go on with."""
    return "private" in scheme.blocks or any("private" in phase.moves for phase in scheme.phases)


@dataclass
class Traffic:
    """Bytes of messages that a runtime has sent and received so far, and of those that only evaluate."""

    up: int = 0
    down: int = 0
    scored: int = 0


@runtime_checkable
class Metered(Protocol):
    """A runtime that counts what its messages take."""

    traffic: Traffic


class Runtime(Protocol):
    """Runs nodes. Two implementations: in process, and over Flower."""

    def users(self) -> Sequence[str]:
        """All users that may train, in a fixed order."""
        ...

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        """Train the users of a round and yield their releases (or nodes' sums of them)."""
        ...

    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """One row per user: user, seen, train, test, and ``<control>.<metric>`` for each control in ``wanted``."""
        ...
