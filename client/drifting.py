"""On a node: whether a user's data has changed, so that what is private trains in a period. `strategies.drift` has the detectors.

The decision is made once, as the period begins for a user, and kept with what they have: it acts on private training alone, and what a
user releases in a round is made as ever. A round that is repeated decides in the same way; where a look has noise of the operating
system's, it may not, and is paid for again.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence

import torch
from torch import Tensor

from client.data.types import Encoded
from client.score import nats, scores
from client.tower import Blocks
from client.train import together
from strategies import drift
from strategies.keeping.contract import MEMORY, NOTES, PERIOD, SAT_OUT
from strategies.privacy import budget
from strategies.tree import State

if typing.TYPE_CHECKING:
    from client.node import Node


def sits_out(node: Node, state: State) -> bool:
    """Whether what is private does not train in the node's period."""
    return SAT_OUT in state and int(state[SAT_OUT]) >= node.scenario.life.period > 0


def judged(node: Node, user: str, state: State, round_: int) -> State:
    """A state that says whether the user sits the period out. Who has never trained does not, nor who cannot pay for the look."""
    if sits_out(node, state) or not int(state[PERIOD]):
        return state
    detector = drift.of(node.scenario)
    normal = _noise(node, user, round_) if detector.noise else 0.0
    if normal is None:
        return state
    notes_M, alarm = detector.see(state.get(NOTES, torch.zeros(0)).cpu(), gains(node, user, state), normal)
    noted = {NOTES: notes_M.to(state[NOTES])} if NOTES in state else {}
    return state | noted | ({} if alarm else {SAT_OUT: torch.full_like(state[SAT_OUT], node.scenario.life.period)})


def gains(node: Node, user: str, state: State) -> Tensor:
    """Of each privacy unit that the period trains on, in order: its loss under the user's own model minus under the shared one, nats.

    Loss per token, or per choice, a mean over the unit's examples.
    """
    examples = node.dataset.users[user].train
    own = node.trainer.blocks(together([state]), node.split.scheme.final)
    shared = [(x, {n: state[f"{x.block}/{n}"].unsqueeze(0) for n in x.names()}) for x in node.split.layouts if x.block == "shared"]
    x_n = _losses(node, own, examples) - _losses(node, shared, examples)
    units = list(dict.fromkeys(e.unit for e in examples))
    at = torch.tensor([units.index(e.unit) for e in examples])
    return torch.zeros(len(units)).index_add(0, at, x_n) / torch.bincount(at, minlength=len(units))


def sat_out(node: Node, round_: int) -> int:
    """How many users of the period sit it out, by what is stored before a round."""
    if node.scenario.life.train == "always":
        return 0
    return sum(sits_out(node, node.store.parts(user, round_, node.origin).get(MEMORY, {})) for user in node.users())


def _losses(node: Node, blocks: Blocks, examples: Sequence[Encoded]) -> Tensor:
    (found,) = scores(node.tower, blocks, [examples], node.scenario.engine, node.dataset.label_ids)
    loss_n, count_n = nats(found, examples)
    return loss_n / count_n


def _noise(node: Node, user: str, round_: int) -> float | None:
    """A standard normal number for one look, which is booked before; None where nothing is left for it."""
    if node.purse is None:
        raise RuntimeError("a node that looks with noise needs a purse")
    (cost,) = drift.look(node.scenario)
    if user not in node.purse.book(round_, node.split.scheme, {user: {budget.DRIFT: cost}}):
        return None
    key = (node.scenario.seed, user, node.scenario.life.period, budget.DRIFT)
    return float(node.purse.draw(*key)(torch.Size([1])))
