"""Where edits are learnt and looked at: the base with the adapters of a node, and room for a change of one module beside them.

An edit sees its user's example without noise, so that nothing here is part of a node: a bench is opened on a node that is done, and the
node that trains knows nothing of it. Many edits of many users run in one pass, each with its own user's adapters.

Shape suffixes: E edits, P positions where an edit's answer is predicted, N rows, M predicting positions, I in, O out, R rank.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from client.adapters.layout import PREFIX, Layout, has_prompt, layer_of
from client.adapters.types import Part, sizes
from client.base import Base
from client.data.types import Encoded
from client.node import Node
from client.objective import choice_logits, logits, row_losses
from client.rows import pad
from client.store.manifest import PRIVATE
from client.tower import Blocks, Predicting, Tower
from client.train import together
from configs.errors import InputError
from configs.scenario import Adapter
from strategies.base import Task
from strategies.editors.contract import A, B, Editor, Lesson
from strategies.keeping.contract import MEMORY
from strategies.tree import State, stack

BLOCK = "edit"
ROWS = 64  # examples in a pass that only looks
BESIDE = 16  # ordinary texts that an edit is held to, of an editor that is
TEXTS = 1024  # that C is taken over, at most


class Asked(NamedTuple):
    """An edit to be learnt."""

    user: State  # all that the user has, "block/name"
    examples: tuple[Encoded, ...]  # prompts with the new answer
    key: tuple[object, ...]  # of randomness


class Answer(NamedTuple):
    """What a model says to one prompt."""

    logp_PL: Tensor  # log-probabilities of labels, or of all tokens, where something is predicted
    target_P: Tensor

    def right(self) -> bool:
        """Whether the likeliest answer is the one that was asked for."""
        return bool((self.logp_PL.argmax(1) == self.target_P).all())

    def like(self, other: "Answer") -> bool:
        """Whether it is the same answer."""
        return bool((self.logp_PL.argmax(1) == other.logp_PL.argmax(1)).all())

    def chance(self) -> float:
        """The probability of the answer that was asked for."""
        return float(self.logp_PL.gather(1, self.target_P[:, None]).sum().exp())

    def kl(self, other: "Answer") -> float:
        """KL(self || other), in nats per predicted position."""
        return float((self.logp_PL.exp() * (self.logp_PL - other.logp_PL)).sum(1).mean())


@dataclass(frozen=True)
class Bench:
    """A node's adapters and one more."""

    node: Node
    tower: Tower
    layout: Layout

    @property
    def module(self) -> str:
        """Whose weight is changed."""
        return self.layout.modules[0]

    def user(self, name: str, task: Task) -> State:
        """All that a user has as ``task.round`` begins, without their edits."""
        node, device = self.node, self.node.base.device
        sent = {node.split.key(key): value.to(device) for key, value in task.shared.items()}
        received = {k: sent.get(k, v) for k, v in node.start.items() if not node.split.kept(k)}
        parts = node.store.parts(name, task.round, node.origin)
        stored = {**parts.get(PRIVATE, {}), **parts.get(MEMORY, {})}
        return {**received, **node.split.own(node.start, received), **{k: v.to(device) for k, v in stored.items()}}

    # ------------------------------------------------------------------ learning
    def learn(self, editor: Editor, asked: Sequence[Asked], ordinary: Sequence[Encoded]) -> list[State]:
        """Learn edits side by side: what is kept of each, in order.

        ``ordinary``: texts that belong to nobody, or to the one user whose edits these all are. C is taken of the base alone, so that
        no user's adapters enter another's edit.
        """
        found: list[State] = []
        most = max(len(x.examples) for x in asked) + (BESIDE if editor.drifts else 0)
        longest = max(self.tower.positions(e) for x in asked for e in (*x.examples, *ordinary[:BESIDE]))
        width = max(1, self.tower.tokens_per_pass // (most * longest))
        inputs = self._inputs([], ordinary[:TEXTS])
        for first in range(0, len(asked), width):
            learnt = editor.learn(self._lesson(editor, asked[first : first + width], ordinary[:BESIDE], inputs))
            found += [{n: v[i].cpu().clone() for n, v in learnt.items()} for i in range(len(next(iter(learnt.values()))))]
        return found

    def _lesson(self, editor: Editor, asked: Sequence[Asked], ordinary: Sequence[Encoded], inputs: Tensor) -> Lesson:
        blocks, count = self._blocks([x.user for x in asked]), len(asked)
        most, beside = max(len(x.examples) for x in asked), list(ordinary) if editor.drifts else []
        rows = [e for x in asked for e in (*x.examples, *[x.examples[0]] * (most - len(x.examples)), *beside)]
        counts = torch.tensor([len(x.examples) for x in asked], device=inputs.device)
        is_own = torch.arange(most, device=inputs.device) < counts[:, None]
        with torch.no_grad():
            old = self._said(rows, blocks)

        def loss(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            at = self.tower(rows, [*blocks, (self.layout, self._named({A: a, B: b}))])
            each = row_losses(self.tower.base, at, len(rows), self.node.dataset.label_ids).unflatten(0, (count, -1))
            nll_E = (each[:, :most] * is_own).sum(1) / counts
            return nll_E, self._drift(old, at, len(rows)).unflatten(0, (count, -1))[:, most:].mean(1) if beside else nll_E * 0

        keys = [self._inputs(self._blocks([x.user]), x.examples) for x in asked]
        return Lesson(nn.utils.rnn.pad_sequence(keys, batch_first=True), inputs, sizes(self._linear())[1], loss, asked[0].key)

    def _drift(self, old: Tensor, at: Predicting, rows: int) -> Tensor:
        kl_M = (old.exp() * (old - self._logp(at))).sum(1)
        return kl_M.new_zeros(rows).index_add(0, at.row_M, kl_M) / torch.bincount(at.row_M, minlength=rows).clamp(min=1)

    @torch.no_grad()
    def _inputs(self, blocks: Blocks, examples: Sequence[Encoded]) -> Tensor:
        """What goes into the module where something is predicted, [M, I], under these adapters."""
        found: list[Tensor] = []
        for first in range(0, len(examples), ROWS):
            some, seen = examples[first : first + ROWS], _Seen(self.module)
            self.tower(some, [*blocks, (seen, {})])  # type: ignore[list-item]
            rows, x_NQI = pad(some).to(self.tower.base.device), seen.input[0]
            if self.tower.way in ("tail", "keys") and not has_prompt(tuple(layout for layout, _ in blocks)):
                wanted = rows.wanted(rows.queries(x_NQI.shape[1]))
            else:
                x_NQI, wanted = x_NQI[:, x_NQI.shape[1] - rows.ids_NT.shape[1] :], rows.predicting()
            found.append(x_NQI[wanted].float())
        return torch.cat(found)

    # ------------------------------------------------------------------ looking
    @torch.no_grad()
    def answers(self, users: Sequence[State], changes: Sequence[State], work: Sequence[Sequence[Encoded]]) -> list[list[Answer]]:
        """What each user's model says to their prompts. A change: A and B of the module; {} for none."""
        found: list[list[Answer]] = []
        for user, change, examples in zip(users, changes, work, strict=True):
            blocks, own = self._blocks([user], [change] if change else ()), list[Answer]()
            rows = ROWS if self.node.dataset.label_ids else ROWS // 8
            for first in range(0, len(examples), rows):
                at = self.tower(some := examples[first : first + rows], blocks)
                counts = torch.bincount(at.row_M, minlength=len(some)).tolist()  # rows come in order
                own += map(Answer, self._logp(at).cpu().split(counts), at.target_M.cpu().split(counts))
            found.append(own)
        return found

    def _said(self, rows: Sequence[Encoded], blocks: Blocks) -> Tensor:
        return self._logp(self.tower(rows, blocks))

    def _logp(self, at: Predicting) -> Tensor:
        base, ids = self.tower.base, self.node.dataset.label_ids
        return (choice_logits(base, at, ids) if ids else logits(base, at.hidden_MD).float()).log_softmax(1)

    # ------------------------------------------------------------------ blocks
    def _blocks(self, users: Sequence[State], changes: Sequence[State] = ()) -> Blocks:
        found = self.node.trainer.blocks(together(users), self.node.split.scheme.final)
        return [*found, (self.layout, self._named(stack(_even(changes))))] if changes else found

    def _named(self, change: State) -> State:
        return {f"{PREFIX}{self.module}.{name}": value.to(self.tower.base.device) for name, value in change.items()}

    def _linear(self) -> nn.Module:
        return self.tower.base.model.get_submodule(self.module)


@contextmanager
def opened(node: Node, layer: int = -1) -> Iterator[Bench]:
    """Take the base over from a node, which is closed by that. ``layer``: whose last linear module is changed; -1 is the top one."""
    if node.split.scheme.references:
        raise InputError(f"scheme '{node.scenario.scheme}' weighs a user's adapters anew for each text, so no one model can be edited")
    node.close()
    added = layout(node.base, module_of(node.base, layer))
    tower = Tower(node.base, (*node.split.layouts, added), node.scenario.engine)
    try:
        yield Bench(node, tower, added)
    finally:
        tower.close()


def module_of(base: Base, layer: int = -1) -> str:
    """The last linear module of a decoder layer: where its feed-forward part writes into the stream."""
    depth = len(base.layers)
    if not -depth <= layer < depth:
        raise InputError(f"layer must be between {-depth} and {depth - 1}, got {layer}")
    linear = [name for name, module in base.model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [name for name in linear if layer_of(base, name) == layer % depth][-1]


def layout(base: Base, module: str) -> Layout:
    """Room for A and B of any rank beside a module, at scale one."""
    columns, rows = sizes(base.model.get_submodule(module))
    start = {A: torch.zeros(1, columns), B: torch.zeros(rows, 1)}
    named = {f"{PREFIX}{module}.{name}": value.to(base.device) for name, value in start.items()}
    return Layout(BLOCK, Adapter(rank=1, alpha=1.0), (module,), max(layer_of(base, module), 0), named, {module: {}})


def placed(base: Base, module: str, change: State) -> tuple[Layout, State]:
    """What edits come to as an adapter beside a user's own ones, and its tensors, "edit/name"."""
    return layout(base, module), {f"{BLOCK}/{PREFIX}{module}.{name}": value.to(base.device) for name, value in change.items()}


def _even(changes: Sequence[State]) -> list[State]:
    """All of one rank: smaller ones get rows and columns of zeros."""
    rank = max(len(x[A]) for x in changes)
    pads = [rank - len(x[A]) for x in changes]
    pad_to = nn.functional.pad
    return [{A: pad_to(x[A], (0, 0, 0, more)), B: pad_to(x[B], (0, more))} for x, more in zip(changes, pads, strict=True)]


class _Seen:
    """Stands where a layout would and notes what goes into a module."""

    def __init__(self, module: str) -> None:
        self.module, self.input = module, list[Tensor]()

    def parts(self, _state: State) -> dict[str, Part]:
        def note(x: Tensor, y: Tensor) -> Tensor:
            self.input.append(x)
            return y

        return {self.module: note}
