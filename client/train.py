"""Local training of many users at once: one forward and backward a step for a whole cohort, a gradient for each user.

Every user's loss is the mean over their own batch and the losses are added up over users; users have no number in common that moves,
so each gets their own gradient only. That equals training them one after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from client import dpsgd
from client.adapters.layout import Layout
from client.data.types import Encoded
from client.dpsgd import Guard
from client.flat import Flat, Pull, RowOptimizer
from client.learner import Learner
from client.objective import row_losses
from client.planner import Pass, cohorts, step_passes, token_budget, unit_passes
from client.score import mean_losses
from client.tower import Blocks, Tower
from configs.scenario import Engine, Local
from strategies.base import Phase
from strategies.tree import State, generator, stack


@dataclass
class Work:
    """What a phase did, added up over users."""

    tokens: int = 0  # real tokens of the examples that were passed
    examples: int = 0
    loss: float = 0.0  # sum over examples, nats
    steps: int = 0  # optimizer steps of single users

    def add(self, other: "Work") -> None:
        """Add another's counts to these."""
        self.tokens, self.examples = self.tokens + other.tokens, self.examples + other.examples
        self.loss, self.steps = self.loss + other.loss, self.steps + other.steps


@dataclass(frozen=True)
class Trainer:
    """The engine on one base: a tower, the adapters on it, and what is asked of the model."""

    tower: Tower
    layouts: tuple[Layout, ...]
    engine: Engine
    label_ids: tuple[int, ...] = field(default=())
    phase: Phase | None = None  # what is applied of a state, and how; None: all of it as it is

    def train(self, learners: Sequence[Learner], moves: Callable[[str], bool], local: Local, guard: Guard | None = None,
              phase: Phase | None = None) -> tuple[list[State], Work]:  # fmt: skip
        """Train the tensors that ``moves`` accepts, for each learner; returns those tensors in the learners' order.

        With a ``guard`` by DP-SGD: what comes back then is private in any one unit of a learner's training examples, and in
        nothing else. Early stopping looks at other examples, so a guarded phase must not use it.
        """
        if phase is not None:
            return replace(self, phase=phase).train(learners, moves, local, guard)
        numbers = sum(v.numel() for n, v in learners[0].state.items() if moves(n))
        result: list[State] = [{} for _ in learners]
        work = Work()
        for group in cohorts([x.train for x in learners], local.batch, self.tower, self.engine, numbers):
            cohort = [learners[k] for k in group]
            trained, done = self._cohort(cohort, moves, local, numbers, guard)
            work.add(done)
            for index, k in enumerate(group):
                result[k] = {name: value[index].clone() for name, value in trained.items()}
        return result, work

    def blocks(self, state: State, phase: Phase | None = None) -> Blocks:
        """Order "block/name" tensors (leading K or 1) the way a tower applies them; of a phase, those that it applies."""
        found = phase or self.phase
        seen = found.view(state) if found else state
        applied = [x for x in self.layouts if not found or found.applied(x.block)]
        return [(x, {n: seen[f"{x.block}/{n}"] for n in x.names()}) for x in applied]

    def _cohort(self, cohort: list[Learner], moves: Callable[[str], bool], local: Local, numbers: int,
                guard: Guard | None) -> tuple[State, Work]:  # fmt: skip
        flat = Flat(stack([{n: v for n, v in x.state.items() if moves(n)} for x in cohort]))
        fixed = together([{n: v for n, v in x.state.items() if not moves(n)} for x in cohort])
        sizes = [len(x.train) for x in cohort]
        masks, shifts = (_like(flat, [getattr(x, name) for x in cohort], fill) for name, fill in (("mask", 1.0), ("shift", 0.0)))
        optimizer = RowOptimizer(flat, local, sizes, self._pull(cohort), masks, shifts)
        best = _Best(flat, [len(x.validation) > 0 for x in cohort]) if local.early_stopping else None
        budget, work = token_budget(self.tower, self.engine, numbers, local.batch), Work()
        for epoch in range(local.epochs + 1):
            if best is not None:
                best.keep(self._validation(cohort, {**fixed, **flat.views(flat.theta_KP)}))
            if epoch < local.epochs:
                if guard is None:
                    self._epoch(cohort, flat, fixed, optimizer, local.batch, epoch, budget, work)
                else:
                    self._guarded_epoch(cohort, flat, fixed, optimizer, local.batch, epoch, budget, work, guard)
        return flat.views(flat.theta_KP if best is None else best.theta_KP), work

    def _pull(self, cohort: list[Learner]) -> Pull | None:
        """What the moving tensors are pulled to, and how strongly."""
        strength = self.phase.pull if self.phase else 0.0
        return Pull(Flat(stack([x.anchor for x in cohort])).theta_KP, strength) if strength else None

    def _epoch(self, cohort: list[Learner], flat: Flat, fixed: State, optimizer: RowOptimizer, batch: int, epoch: int,
               budget: int, work: Work) -> None:  # fmt: skip
        shuffled = [_shuffle(x.train, batch, (*x.key, epoch)) for x in cohort]
        first = 0
        while active := sum(len(examples) > first for examples in shuffled):
            batches = [examples[first : first + batch] for examples in shuffled[:active]]
            flat.grad_KP[:active].zero_()
            for part in step_passes(batches, self.tower, budget):
                leaves = flat.leaves(active)
                flat.accumulate(self._loss(part, {**prefix(fixed, active), **leaves}, work), leaves)
            self._hold(flat, fixed, active)
            optimizer.step(range(active))
            work.steps += active
            first += batch

    def _guarded_epoch(self, cohort: list[Learner], flat: Flat, fixed: State, optimizer: RowOptimizer, batch: int, epoch: int,
                       budget: int, work: Work, guard: Guard) -> None:  # fmt: skip
        spread = {name: value.unsqueeze(1) for name, value in fixed.items()}
        for step, drawn in enumerate(dpsgd.batches(cohort, batch, guard, epoch)):
            active = len(drawn)
            flat.grad_KP[:active].zero_()
            for part in unit_passes(drawn, [x.train[0] for x in cohort[:active]], self.tower, budget, flat.grad_KP.shape[1]):
                leaves = flat.leaves_per_unit(active, part.units)
                flat.accumulate_clipped(self._loss(part, {**prefix(spread, active), **leaves}, work), leaves, guard.clip)
            dpsgd.add_noise(flat, cohort[:active], batch, guard, epoch, step)
            self._hold(flat, fixed, active)
            optimizer.step(range(active))
            work.steps += active

    def _hold(self, flat: Flat, fixed: State, active: int) -> None:
        """Add the slopes of the phase's penalty, which look at no example, to the gradients of the first users."""
        if self.phase and self.phase.penalty:
            gradients = flat.views(flat.grad_KP[:active])
            for name, slope in self.phase.penalty({**prefix(fixed, active), **flat.views(flat.theta_KP[:active])}).items():
                if name in gradients:
                    gradients[name] += slope

    def _loss(self, part: Pass, state: State, work: Work) -> Tensor:
        """The weighted sum of a pass's losses; counts its real rows."""
        losses_N = row_losses(self.tower.base, self.tower(part.examples, self.blocks(state)), len(part.examples), self.label_ids)
        weight_N = part.weight_N.to(losses_N.device)
        work.loss += float((losses_N.detach() * (weight_N > 0)).sum())
        work.examples += sum(i >= 0 for i in part.source_N)
        work.tokens += sum(e.length for e, i in zip(part.examples, part.source_N, strict=True) if i >= 0)
        return (losses_N * weight_N).sum()

    def _validation(self, cohort: list[Learner], state: State) -> Tensor:
        return mean_losses(self.tower, self.blocks(state), [x.validation for x in cohort], self.engine, self.label_ids)


def _like(flat: Flat, given: Sequence[State], fill: float) -> Tensor | None:
    """A number for each moving one, [K, P], where some user has any; ``fill`` for tensors that are not named."""
    if not any(given):
        return None
    plain = {n: v[0] for n, v in flat.views(torch.full_like(flat.theta_KP[:1], fill)).items()}
    return Flat(stack([{n: each.get(n, v) for n, v in plain.items()} for each in given])).theta_KP


class _Best:
    """Each user's numbers at the epoch that was best on their own validation split; without one, at the last."""

    def __init__(self, flat: Flat, judged: Sequence[bool]) -> None:
        self.flat, self.theta_KP = flat, flat.theta_KP.clone()
        self.judged_K = torch.tensor(judged, device=self.theta_KP.device)
        self.loss_K = torch.full((len(judged),), torch.inf, device=self.theta_KP.device)

    def keep(self, loss_K: Tensor) -> None:
        better = (loss_K < self.loss_K) | ~self.judged_K  # a loss that is no number is never better
        self.theta_KP[better] = self.flat.theta_KP[better]
        self.loss_K = torch.where(better, loss_K, self.loss_K)


def together(states: Sequence[State]) -> State:
    """Stack states along a user axis; a tensor that all have in common (the same object) gets an axis of one."""
    return {
        name: value.unsqueeze(0) if all(s[name] is value for s in states) else torch.stack([s[name] for s in states])
        for name, value in (states[0].items() if states else ())
    }


def prefix(stacked: State, users: int) -> State:
    """The first ``users`` rows; tensors that all users have in common stay as they are."""
    return {name: value if value.shape[0] == 1 else value[:users] for name, value in stacked.items()}


def _shuffle(examples: Sequence[Encoded], batch: int, key: tuple[object, ...]) -> Sequence[Encoded]:
    if len(examples) <= batch:  # one step whatever the order
        return examples
    order = torch.randperm(len(examples), generator=generator(*key, "order"))
    return [examples[i] for i in order.tolist()]
