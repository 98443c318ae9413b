"""The new base learns what the old personal models say of texts that are nobody's: see `strategies.migrators.distill`.

For one model: minimize the mean over texts of KL(old || new), over labels for a choice, else over the vocabulary at each token.
Adapters begin at their start; Adam (Kingma & Ba, arXiv 1412.6980) with a rate that falls to zero. Users train side by side, each with
losses of their own.

Shape suffixes: K users, M predictions, V labels or tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from client.data.types import Encoded
from client.node import Node
from client.objective import choice_logits, logits
from client.store import origin
from client.tower import Blocks
from client.train import together
from configs.errors import InputError
from strategies.base import Phase
from strategies.tree import State, generator, take

BATCH = 32  # texts of a step
ALONE = Phase("shared", ("shared",), applies=("shared",))


@dataclass
class Teacher:
    """Two nodes, texts as each one's tokens, and the shared adapter of the old base, as it travels."""

    old: Node
    new: Node
    texts: tuple[Sequence[Encoded], Sequence[Encoded]]
    taught: State
    steps: int
    lr: float
    shared: State = field(init=False)  # on the new base, as it travels
    left: list[tuple[float, float]] = field(default_factory=list)  # of each model: divergence at the start and at the end, nats

    def __post_init__(self) -> None:
        """Teach the shared adapter, which everybody's own then stands beside."""
        scheme, there, here = self.old.split.scheme, *self.texts
        if scheme.references or scheme.clusters > 1 or scheme.twins or self.old.split.aggregator.controls:
            raise InputError(
                f"distill knows schemes of one shared and one private adapter, and not '{self.old.scenario.scheme}'; use carry"
            )
        if not there or len(there) != len(here):
            raise InputError("distill needs texts that both tokenizers read, which this data has not; use --with carry or project")
        if not self.old.dataset.label_ids and origin.of_tokenizer(self.old.base.tokenizer) != origin.of_tokenizer(
            self.new.base.tokenizer
        ):
            raise InputError("distill of next tokens needs one tokenizer on both bases; use --with retrain")
        start = self.new.split.shared_start()
        moving = {key for name in start if (key := self.new.split.key(name)).startswith("shared/")}
        if not moving:
            self.shared = start
            return
        there, here = received(self.old, self.taught), received(self.new, start)
        found = self._taught([_whole(self.old, there, {})], [_whole(self.new, here, {})], moving, ALONE)[0]
        self.shared = start | {self.new.split.name(key): value.cpu() for key, value in found.items()}

    def users(self, _users: Sequence[str], states: Sequence[State]) -> list[State]:
        """What each user keeps on the new base."""
        there, here = received(self.old, self.taught), received(self.new, self.shared)
        own = self.new.split.own(self.new.start, here)
        moving = {f"{x.block}/{n}" for x in self.new.split.layouts for n in x.start} & own.keys()
        begin, width, found = _whole(self.new, here, own), self._width(), []
        for first in range(0, len(states), width):
            some = [_whole(self.old, there, state) for state in states[first : first + width]]
            found += self._taught(some, [begin] * len(some), moving, self.new.split.scheme.final)
        kept = [{k: v for k, v in state.items() if k not in moving} for state in states]
        return [{**own, **stays, **new} for stays, new in zip(kept, found, strict=True)]

    def lost(self) -> float:
        """Share of the divergence that is left, over all models."""
        before = sum(begun for begun, _ in self.left)
        return sum(ended for _, ended in self.left) / before if before else 0.0

    def _width(self) -> int:
        rows = max(self.new.tower.positions(e) for e in self.texts[1]) * min(BATCH, len(self.texts[1]))
        return max(1, self.new.scenario.engine.tokens_per_pass // rows)

    def _taught(self, teachers: list[State], students: list[State], moving: set[str], phase: Phase) -> list[State]:
        """Train the tensors ``moving`` of all students at once; returns them."""
        old, new = together(teachers), together(students)
        theta = {k: torch.stack([s[k] for s in students]).detach().requires_grad_() for k in sorted(moving)}
        optimizer = torch.optim.Adam(theta.values(), self.lr)

        def divergence(step: int) -> Tensor:
            return self._divergence(old, {**new, **theta}, self._drawn(step), phase, len(students))

        with torch.no_grad():
            begun_K = divergence(0)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2
            optimizer.zero_grad()
            divergence(step).sum().backward()
            optimizer.step()
        with torch.no_grad():
            self.left += zip(begun_K.tolist(), divergence(0).tolist(), strict=True)
        return [take({k: v.detach() for k, v in theta.items()}, i) for i in range(len(students))]

    def _divergence(self, old: State, new: State, which: list[int], phase: Phase, users: int) -> Tensor:
        """Mean KL(old || new) of each user, [K] nats."""
        with torch.no_grad():
            taught_MV = _logp(self.old, self.old.trainer.blocks(old, phase), [self.texts[0][i] for i in which], users)[0]
        said_MV, user_M = _logp(self.new, self.new.trainer.blocks(new, phase), [self.texts[1][i] for i in which], users)
        each_M = (taught_MV.exp() * (taught_MV - said_MV)).sum(1)
        count_K = torch.bincount(user_M, minlength=users)
        return torch.zeros(users, device=each_M.device).index_add(0, user_M, each_M) / count_K

    def _drawn(self, step: int) -> list[int]:
        count = len(self.texts[0])
        return torch.randperm(count, generator=generator(self.new.scenario.seed, "distill", step))[:BATCH].tolist()


def _logp(node: Node, blocks: Blocks, texts: Sequence[Encoded], users: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities at every predicting position, [M, V], and whose each is, [M]. Every user sees all texts."""
    shown = [e for _ in range(users) for e in texts] if _each(blocks) == users else list(texts)
    at = node.tower(shown, blocks)
    ids = node.dataset.label_ids
    logp_MV = (choice_logits(node.base, at, ids) if ids else logits(node.base, at.hidden_MD).float()).log_softmax(1)
    return logp_MV, at.row_M // len(texts)


@torch.no_grad()
def written(node: Node, shared: State, count: int, length: int) -> tuple[Encoded, ...]:
    """Texts that a node's base writes with the shared adapter alone: made of what has left all nodes already, and of no user's own."""
    draw = generator(node.scenario.seed, "distill", "written")
    vocabulary = node.base.model.get_input_embeddings().weight.shape[0]
    ids_NT = torch.randint(vocabulary, (count, 1), generator=draw)
    common, choice = received(node, shared), bool(node.dataset.label_ids)
    blocks = node.trainer.blocks(together([{**common, **node.split.own(node.start, common)}]), ALONE)
    for _ in range(length - 1):
        at = node.tower([Encoded(row, ids_NT.shape[1], 0, 0) for row in ids_NT], blocks)
        chance_NV = logits(node.base, at.hidden_MD).float().softmax(1).cpu()
        ids_NT = torch.cat([ids_NT, torch.multinomial(chance_NV, 1, generator=draw)], 1)
    return tuple(Encoded(row, length if choice else 1, 0 if choice else -1, i) for i, row in enumerate(ids_NT))


def _each(blocks: Blocks) -> int:
    return max((v.shape[0] for _, state in blocks for v in state.values()), default=1)


def received(node: Node, shared: State) -> State:
    """What all users have in common, "block/name" -> tensor on the node's device."""
    sent = {node.split.key(name): value.to(node.base.device) for name, value in shared.items()}
    return {k: sent.get(k, v) for k, v in node.start.items() if not node.split.kept(k)}


def _whole(node: Node, common: State, private: State) -> State:
    """All that one user has."""
    return {**common, **node.split.own(node.start, common), **{k: v.to(node.base.device) for k, v in private.items()}}
