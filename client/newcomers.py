"""What nodes do about a new user: hand over private adapters that may be released, read profiles, and judge candidates under E.

Shape suffixes: J candidates, K users, U privacy units of a user, E numbers of a profile.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from client.base import Base
from client.data.types import Encoded
from client.node import Node
from client.score import nats, scores
from client.train import together
from strategies.base import Task
from strategies.newcomers.contract import Asked, Verdict, Way
from strategies.privacy.events import Event
from strategies.privacy.gaussian import mu_for
from strategies.privacy.ledger import Spend
from strategies.tree import State, stack, take

ROWS = 64  # texts in a pass
START = "start"  # what looking at a newcomer's examples is called in a ledger


def released(node: Node, before: int) -> tuple[list[str], State]:
    """Who has a private adapter of an earlier round, and these, [K, ...]. Whether they may be released, `newcomers.refuse` says."""
    found = {user: node.store.load(user, before, node.origin) for user in node.users()}
    have = {user: state for user, state in found.items() if state}
    return list(have), stack(list(have.values())) if have else {}


@torch.no_grad()
def profiles(base: Base, texts: Mapping[str, str]) -> dict[str, Tensor]:
    """The mean last hidden state of the base over each text, float32 [E]; equal texts are read once."""
    distinct = sorted(set(texts.values()), key=len)
    ids = [torch.tensor(base.tokenizer(text)["input_ids"]) for text in distinct]
    read: dict[str, Tensor] = {}
    for at in range(0, len(ids), ROWS):
        some = ids[at : at + ROWS]  # filled up at their ends, which no earlier position of a causal model sees
        hidden_NTE = base.model.base_model(input_ids=pad_sequence(some, batch_first=True).to(base.device)).last_hidden_state
        means = [hidden_TE[: len(x)].float().mean(0).cpu() for hidden_TE, x in zip(hidden_NTE, some, strict=True)]
        read |= dict(zip(distinct[at:], means, strict=False))
    return {user: read[text] for user, text in texts.items()}


def begin(node: Node, way: Way, sent: State, user: str, task: Task, profile_E: Tensor | None = None) -> State:
    """The private adapter that a new user of this node begins with; what a look at their examples costs is booked first."""
    return way.begin(sent, Asked(partial(verdict, node, way, user, task), profile_E))


def verdict(node: Node, way: Way, user: str, task: Task, candidates: State) -> Verdict:
    """What a user's training examples say of candidates [J, ...]; nothing, where they have none or their budget is spent."""
    examples, count = node.dataset.users[user].train, len(next(iter(candidates.values())))
    nothing = Verdict(torch.zeros(count), 0.0)
    if not examples:
        return nothing
    if not node.scenario.privacy.of_examples:
        return Verdict(summed(losses(node, task, candidates, examples), float("inf")), 0.0)
    multiplier = booked(node, way, user, task.round)
    if multiplier is None:
        return nothing
    assert node.purse is not None
    total_J = summed(losses(node, task, candidates, examples), way.bound)
    noise = node.purse.draw(node.scenario.seed, task.round, user, START)
    return Verdict(total_J + multiplier * way.bound * noise(total_J.shape), multiplier * way.bound)


def booked(node: Node, way: Way, user: str, round_: int) -> float | None:
    """The noise multiplier of one look at all of a user's examples, which is booked; None where the budget does not allow it.

    It stands under a run of its own, so that whatever trains later is planned with what is left.
    """
    if node.purse is None:
        raise RuntimeError("a node that is to protect examples needs a purse")
    privacy, purse = node.scenario.privacy, node.purse
    multiplier = (mu_for(privacy.example.epsilon, privacy.example.delta) ** 2 * way.share) ** -0.5
    spend = Spend(purse.payer(user), f"{purse.run}-{START}", round_, START, Event(multiplier), purse.keyed)
    asked = privacy.example.epsilon, privacy.example.delta, privacy.accountant
    return multiplier if purse.ledger.spend_within([spend], *asked) else None


def summed(losses_UJ: Tensor, bound: float) -> Tensor:
    """The sum over units of each one's losses, less their mean over candidates and cut to an L2 norm of ``bound``; float64 [J]."""
    apart_UJ = losses_UJ.double() - losses_UJ.double().mean(1, keepdim=True)
    norm_U1 = apart_UJ.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return (apart_UJ * (bound / norm_U1).clamp(max=1.0)).sum(0)


def losses(node: Node, task: Task, candidates: State, examples: Sequence[Encoded]) -> Tensor:
    """The loss of each unit under each candidate, beside the shared adapter, in nats, [U, J]."""
    received = {**node.start, **{node.split.key(n): v.to(node.base.device) for n, v in task.shared.items()}}
    every = [received | take(candidates, j) for j in range(len(next(iter(candidates.values()))))]
    blocks = node.trainer.blocks(together(every), node.split.scheme.final)
    found = scores(node.tower, blocks, [examples] * len(every), node.scenario.engine, node.dataset.label_ids)
    loss_NJ = torch.stack([nats(score, examples)[0] for score in found], 1)
    _, unit_N = torch.tensor([e.unit for e in examples]).unique(return_inverse=True)
    return torch.zeros(int(unit_N.max()) + 1, len(every)).index_add(0, unit_N, loss_NJ)


def first(examples: Sequence[Encoded], units: int) -> tuple[Encoded, ...]:
    """The examples of the first so many privacy units, which lie in order of time."""
    kept = set(list(dict.fromkeys(e.unit for e in examples))[:units])
    return tuple(e for e in examples if e.unit in kept)
