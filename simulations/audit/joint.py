"""User canaries against the shared transcript: can whoever sees every shared adapter of a run say whether one user took part?

Andrew, Kairouz, Oh, Oprea, McMahan & Suriyakumar, "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024, arXiv
2302.03098, with the coins of `bound` in place of its Gaussian fit, and one number of the shared adapter instead of a random direction
for each canary: no two of them overlap. A canary that is in sends the same update, many times the bound, in every round it is chosen
for, among real users who train; its node clips it as any other. Rounds, ledger and noise are the real server's. The aggregator is
linear, so that the transcript gives the noised sums; what another one makes of these is post-processing. The attack knows all but the
coins: it takes the real users' updates away.

Shape suffixes: T rounds, M canaries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from client.node import Node
from client.own_noise import clipped
from configs.errors import InputError
from configs.scenario import Scenario, label
from server import rounds
from server.joint import Joint, open_joint
from simulations.audit.bound import Floats
from simulations.audit.canary import Result, coins, result
from simulations.audit.nodes import largest, opened
from simulations.training import World
from strategies.aggregators.fedit import fedit
from strategies.base import Release, Task
from strategies.privacy import matrix
from strategies.privacy.ledger import JOINT, Ledger
from strategies.privacy.noise import Noise
from strategies.tree import State, add, generator, subtract

REAL = 8  # users who train
LOUD = 10.0  # norm of a canary's update over the bound: it is for its node to clip it


class Place(NamedTuple):
    """A canary's own number among the shared adapter's."""

    name: str
    entry: int  # of the flattened tensor


class Sight(NamedTuple):
    """What the attack sees of a run, over the bound: noise of the same size and independent in all rounds, and a canary's effect."""

    seen_TM: Tensor
    effect_TM: Tensor  # of a canary that is in, as far as is known
    claimed: float  # the largest epsilon that anybody's ledger shows

    def score_M(self) -> Floats:  # noqa: N802 - a shape suffix
        """Log likelihood ratio of "in" to "out" for each canary, up to a factor."""
        return ((self.seen_TM * self.effect_TM).sum(0) - self.effect_TM.square().sum(0) / 2).numpy()


class Quiet(Joint):
    """The same server with noise of nothing; it books what noise would have cost."""

    def draw(self, number: int) -> Noise:  # noqa: ARG002 - the interface
        """Zeros."""
        return lambda shape: torch.zeros(shape, dtype=torch.float64)


@dataclass
class Crowd:
    """A `Runtime` of a node's users and of canaries; it notes what the attack knows of each round."""

    node: Node
    places: dict[str, Place]
    there: dict[str, bool]  # the canaries' coins
    tasks: list[Task] = field(default_factory=list)
    chosen: list[list[str]] = field(default_factory=list)
    known: list[State] = field(default_factory=list)  # sum of the real users' updates

    def users(self) -> Sequence[str]:
        """Everyone, in or out."""
        return sorted([*self.node.users(), *self.places])

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        """Real users train; canaries that are in send their number."""
        total: State = {name: torch.zeros_like(value) for name, value in task.shared.items()}
        for release in self.node.train(task, [user for user in users if user not in self.places]):
            total = add(total, release.update)
            yield release
        for user in users:
            if self.there.get(user):
                yield clipped(_sent(task.shared, self.places[user], task.bound), task)
        self.tasks, self.chosen, self.known = [*self.tasks, task], [*self.chosen, list(users)], [*self.known, total]

    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:  # noqa: ARG002 - the interface
        """Nothing."""
        return []


def audit(scenario: Scenario, world: World, folder: Path, canaries: int) -> Result:
    """Audit guarantee U with so many canaries in one run. Raises `InputError` where they cannot be told apart."""
    level = scenario.privacy.user
    if level.mechanism == "local":
        raise InputError("privacy.user.mechanism is 'local', which noises no sum to audit; use gaussian, adaptive or banded")
    if scenario.privacy.secure:
        raise InputError("privacy.secure is on, and the audit sends its canaries without masks; set privacy.secure=false for it")
    users = dict(list(world.dataset.users.items())[:REAL])
    scenario = together(scenario, len(world.dataset.users), len(users) + canaries)
    coin_M = coins(canaries, scenario.seed, "joint")
    names = [f"canary {index:06d}" for index in range(canaries)]
    with opened(scenario, world, users, folder / "node") as node:
        spots = dict(zip(names, places(node.split.shared_start(), canaries, scenario.seed), strict=True))
        there = dict(zip(names, coin_M.tolist(), strict=True))
        noised, plain = (attack(Crowd(node, spots, there), folder / str(quiet), quiet) for quiet in (False, True))
    return result(noised.claimed, (noised.score_M(), plain.score_M()), coin_M, level.delta)


def together(scenario: Scenario, before: int, users: int) -> Scenario:
    """The scenario under guarantee U alone among so many users: the same share in a round, or all where a fixed number is drawn."""
    count = 0 if scenario.sampling == "fixed" else round(users * scenario.users_per_round / before)
    scenario = replace(scenario, privacy=replace(scenario.privacy, guarantee="user"), users_per_round=count, weights="uniform")
    return replace(scenario, aggregator="fedit", aggregator_options={}, personalize=0, evaluate_every=0)


def places(shared: State, count: int, seed: int) -> list[Place]:
    """A number of its own for each canary, drawn over all tensors. Raises `InputError` where there are fewer."""
    every = [Place(name, entry) for name in sorted(shared) for entry in range(shared[name].numel())]
    if count > len(every):
        raise InputError(f"{count} canaries need a number each, and the shared adapter has {len(every)}; raise shared.rank")
    return [every[i] for i in torch.randperm(len(every), generator=generator(seed, "places"))[:count].tolist()]


def attack(crowd: Crowd, folder: Path, quiet: bool = False) -> Sight:
    """Run the rounds and look at every canary's number; ``quiet``: without the noise."""
    scenario, shared = crowd.node.scenario, crowd.node.split.shared_start()
    folder.mkdir()
    with Ledger(folder / JOINT) as ledger:
        server = open_joint(scenario, crowd.users(), ledger, label(scenario))
        server = Quiet(server.plan, ledger, server.run, server.users) if quiet else server
        end = rounds.run(scenario, crowd, fedit(), shared, folder / "run", joint=server)
        claimed = largest(ledger, scenario.privacy.user.delta, scenario.privacy.accountant)
    seen_TM, effect_TM = _moves(crowd, [*(task.shared for task in crowd.tasks), end.shared], server.plan.cohorts.expected)
    if scenario.privacy.user.mechanism == "banded":  # the noise of the encoded sums is independent
        encoder_TT = matrix.encoder(server.plan.banded())
        seen_TM, effect_TM = encoder_TT @ seen_TM, encoder_TT @ effect_TM
    return Sight(seen_TM, effect_TM, claimed)


def _moves(crowd: Crowd, transcript: Sequence[State], expected: int) -> tuple[Tensor, Tensor]:
    """By how much each canary's number moved the sum of each round, over the bound and without the real users; and by how much the
    canary would have moved it, as far as is known. [T, M] both, float64.
    """
    seen, effect = [], []
    hidden = crowd.node.scenario.sampling == "poisson"  # nobody sees who is chosen
    for index, (task, chosen, known) in enumerate(zip(crowd.tasks, map(set, crowd.chosen), crowd.known, strict=True)):
        moved = {n: v.double() * expected - known[n] for n, v in subtract(transcript[index + 1], transcript[index]).items()}
        numbers = {name: value.flatten().tolist() for name, value in moved.items()}
        seen.append([numbers[place.name][place.entry] / task.bound for place in crowd.places.values()])
        effect.append([float(hidden or name in chosen) for name in crowd.places])
    return torch.tensor(seen, dtype=torch.float64), torch.tensor(effect, dtype=torch.float64)


def _sent(shared: State, place: Place, bound: float) -> Release:
    update = {name: torch.zeros_like(value) for name, value in shared.items()}
    update[place.name].view(-1)[place.entry] = LOUD * bound
    return Release(update, 1.0)
