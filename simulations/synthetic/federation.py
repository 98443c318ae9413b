"""Rounds of one aggregator on the synthetic task, through the same contract as in a run: releases in, the next shared adapter out.

What is measured of each round (W: what was received, W_k: what user k has after training, W': the aggregate):

    change      |sum_k p_k W_k - W|_F: how far the ideal aggregate lies from what was received; the others are held against it
    error       |W' - sum_k p_k W_k|_F: how far the aggregate lies from the ideal one
    covariance  |sum_k p_k (B_k - mean B)(A_k - mean A)|_F: what a mean of factors loses on these releases
    tail        sqrt(sum_{i > r} s_i^2) of sum_k p_k B_k A_k: what any adapter of rank r must lose on them

Tensors are float32 on their way, as everywhere; users and measures are in float64.
K: users, O: outputs, I: inputs, R: rank.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from configs.scenario import Scenario
from server.admission import admitted
from simulations.synthetic.task import DELTA, A, B, Setting, Task, effective, mean, start, tail, task
from strategies.aggregators.scaffold import CONTROL, change
from strategies.base import Aggregator, Release, released
from strategies.tree import State

LOST = 1e3  # excess at which a federation has diverged, and ends
HUGE = 1e6  # a number of a user's beyond which it has, too


@dataclass(frozen=True)
class Round:
    """One round: Frobenius norms, and the excess loss after it."""

    size: float  # of the ideal aggregate: what its rounding is measured against
    change: float  # of the ideal aggregate, from what was received
    error: float
    covariance: float
    tail: float
    excess: float  # of the mean loss over the oracle's, as a share of what the oracle gains


def federate(aggregator: Aggregator, setting: Setting, seed: int, rounds: int) -> list[Round]:
    """Run the federation from its start: a row per round, fewer where it diverges. A release that a server would drop is dropped."""
    world, shared = task(setting, seed), start(setting, seed, aggregator.carried)
    own = {name: torch.zeros(setting.users, *shared[name].shape, dtype=torch.float64) for name in (B, A) if aggregator.controls}
    shared |= {f"{CONTROL}/{name}": torch.zeros_like(shared[name]) for name in own}
    memory, found = aggregator.init(shared), []
    for number in range(1, rounds + 1):
        moves, received = partial(released, factors=aggregator.factors(number)), shared
        ends = trained(world, setting, received, moves, aggregator.pull, own)
        if not max(float(end.abs().max()) for end in ends) < HUGE:
            break
        changes = steered(setting, received, own, ends)
        own = {name: own[name] + changes[name] for name in own}
        sent = list(releases(aggregator, setting, world, received, ends, number, changes))
        root = list(root_of(aggregator, setting, world, received, moves))
        given = admitted(iter([*sent, *root]), received, Scenario.max_release_norm, Counter())
        memory, shared = aggregator.apply(memory, received, given)
        found.append(measured(setting, world, received, sent, shared))
        if found[-1].excess > LOST:
            break
    return found


def releases(aggregator: Aggregator, setting: Setting, world: Task, received: State, ends: tuple[Tensor, Tensor], number: int,
             changes: State | None = None) -> Iterator[Release]:  # fmt: skip
    """What each user sends: the round's factors after local training, with what is done to them at home, times the weight.

    ``changes`` [K, ...] of the users' control variates go along.
    """
    factors, (b_KOR, a_KRI) = aggregator.factors(number), ends
    for user, weight in enumerate(world.sizes_K.tolist()):
        moved = {name: x[user].float() - received[name] for name, x in ((B, b_KOR), (A, a_KRI)) if released(name, factors)}
        update = aggregator.at_home(number, received, moved) if aggregator.at_home else moved
        update |= {f"{CONTROL}/{name}": x[user].float() for name, x in (changes or {}).items()}
        factor = weight * (setting.attack if user < setting.attackers else 1.0)
        yield Release({name: value * factor for name, value in update.items()}, weight)


def root_of(aggregator: Aggregator, setting: Setting, world: Task, received: State, moves: Callable[[str], bool]) -> Iterator[Release]:
    """The release of the server's own user, drawn as all others are and never an attacker, for aggregators that ask for one."""
    if aggregator.rooted:
        one = replace(world, optima_KOI=world.root_OI.unsqueeze(0), sizes_K=torch.ones(1), shares_K=torch.ones(1))
        ends = trained(one, setting, received, moves)
        honest = replace(setting, attackers=0)
        yield from (replace(release, root=True) for release in releases(aggregator, honest, one, received, ends, 1))


def steered(setting: Setting, received: State, own: State, ends: tuple[Tensor, Tensor]) -> State:
    """How each user's control variates change in a round [K, ...], by name; nothing where there are none."""
    after = dict(zip((f"shared/{B}", f"shared/{A}"), ends, strict=True))
    before = {f"shared/{name}": received[name].double() for name in own}
    common = {f"{CONTROL}/{name}": received[f"{CONTROL}/{name}"].double() for name in own}
    found = change(before | common, after, setting.steps, setting.lr)
    return {key.removeprefix("shared/"): value for key, value in found.items()}


def trained(world: Task, setting: Setting, received: State, moves: Callable[[str], bool], pull: float = 0.0,
            own: State | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Every user's (B [K, O, R], A [K, R, I]) after gradient descent on 1/2 |delta + B A - D_k|^2 + pull/2 |theta - received|^2.

    ``own``: the users' control variates c_k [K, ...] by name; a gradient then goes with c - c_k.
    """
    first_b, first_a = (received[name].double().expand(len(world.sizes_K), -1, -1) for name in (B, A))
    shift = {name: received[f"{CONTROL}/{name}"].double() - x for name, x in (own or {}).items()}
    target_KOI = world.optima_KOI - received[DELTA].double() if DELTA in received else world.optima_KOI
    b_KOR, a_KRI = first_b, first_a
    for _ in range(setting.steps):
        gap_KOI = b_KOR @ a_KRI - target_KOI
        slope_b, slope_a = gap_KOI @ a_KRI.mT + pull * (b_KOR - first_b), b_KOR.mT @ gap_KOI + pull * (a_KRI - first_a)
        b_KOR = b_KOR - setting.lr * (slope_b + shift.get(B, 0.0)) if moves(B) else b_KOR
        a_KRI = a_KRI - setting.lr * (slope_a + shift.get(A, 0.0)) if moves(A) else a_KRI
    return b_KOR, a_KRI


def measured(setting: Setting, world: Task, received: State, sent: list[Release], after: State) -> Round:
    """The round's numbers, of what was really sent."""
    p_K = world.shares_K
    weight_K = torch.tensor([release.weight for release in sent], dtype=torch.float64).view(-1, 1, 1)
    b, a = (_ends(received[name].double(), [r.update[name] for r in sent if name in r.update], weight_K) for name in (B, A))
    product_OI = mean(p_K, b @ a)
    ideal_OI = product_OI + (received[DELTA].double() if DELTA in received else 0)
    spread_OI = mean(p_K, (b - mean(p_K, b)) @ (a - mean(p_K, a)))
    now_OI = effective(after)
    return Round(
        size=float(ideal_OI.norm()),
        change=float((ideal_OI - effective(received)).norm()),
        error=float((now_OI - ideal_OI).norm()),
        covariance=float(spread_OI.norm()),
        tail=tail(product_OI, setting.rank),
        excess=world.excess(now_OI, setting.rank),
    )


def _ends(received_MN: Tensor, updates: list[Tensor], weight_K: Tensor) -> Tensor:
    """Where each user has ended [K, M, N]: what was received, and what was sent over the weight."""
    moved = torch.stack(updates).double() / weight_K if updates else torch.zeros_like(weight_K)
    return received_MN + moved
