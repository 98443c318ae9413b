"""A node: keeps users, trains them side by side, and lets releases out. The one client body of all runtimes.

A phone keeps one user, a hospital hundreds, a simulation all of them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from client import base as bases
from client import controls, data, sending
from client.adapters.fisher import fitted
from client.data.types import Dataset, Encoded
from client.keeping import along, begun, filed, train_of
from client.learner import Learner
from client.own_noise import OwnNoise
from client.private import PrivateStore
from client.purse import Purse
from client.ranks import masked, masks, narrowed, rank_of
from client.score import mean_losses, scores
from client.similar import NEAR, sampled, similarity
from client.split import split, twin, twinned
from client.store import origin
from client.store.manifest import PRIVATE, Made
from client.tower import Blocks, Tower
from client.train import Trainer, Work, together
from configs.errors import InputError
from configs.scenario import Local, Scenario
from strategies import keeping
from strategies.aggregators.scaffold import change, correction, renewed
from strategies.base import Phase, Release, Task
from strategies.keeping.contract import MEMORY
from strategies.privacy import budget
from strategies.privacy.events import Event
from strategies.privacy.joint import at_home
from strategies.schemes.copies import of
from strategies.schemes.ifca import CHOICE, slot
from strategies.tree import State, generator

Noises = dict[str, list[float]]  # user -> noise multiplier of each phase of a round
CHUNK = 256  # users whose states are in memory at one time


class Turn(NamedTuple):
    """One user in one phase."""

    user: str
    train: Sequence[Encoded]
    noise: float  # multiplier; 0 where the phase is not guarded


class Node:
    """Users, their data and private adapters, and the engine that trains them."""

    def __init__(self, scenario: Scenario, base: bases.Base, dataset: Dataset, store: PrivateStore,
                 purse: Purse | None = None, own: OwnNoise | None = None) -> None:  # fmt: skip
        """Put the adapters on the base. Without a ``purse`` a node trains nobody whose examples are to be protected; without its
        ``own`` noise it releases nothing under the local mechanism.
        """
        self.rank = 0  # of the shared LoRA a node carries at most so many; 0: all
        self.alone = True  # each release is a message, and is pressed as one
        self.masks: dict[int, State] = {}  # by rank, as they are asked for
        self.scenario, self.base, self.dataset, self.store, self.purse, self.own = scenario, base, dataset, store, purse, own
        if scenario.engine.threads:
            torch.set_num_threads(scenario.engine.threads)
        self.split, self.keeping = split(scenario, base), keeping.of(scenario)
        self.start, self.origin = self.split.start(), origin.of(scenario.seed, base, self.split)
        self.tower = Tower(base, self.split.layouts, scenario.engine)
        plain = (x for x in self.split.layouts if x.block not in self.split.scheme.twins)
        layouts = twinned(tuple(fitted(x, self.tower, dataset.public, dataset.label_ids) for x in plain), self.split.scheme)
        self.split = replace(self.split, layouts=layouts)
        self.trainer = Trainer(self.tower, layouts, scenario.engine, dataset.label_ids)

    def close(self) -> None:
        """Take the adapters off the base."""
        self.tower.close()

    def warm(self) -> None:
        """Compute what is cached below the adapters, for every example of every user."""
        everyone = [*self.dataset.users.values(), *self.dataset.unseen.values()]
        self.tower.warm([e for s in everyone for part in (s.train, s.validation, s.test) for e in part])

    def users(self) -> list[str]:
        """The users that may be trained, sorted."""
        return list(self.dataset.users)

    # ------------------------------------------------------------------ training
    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        """Train users for one round and yield each one's release; private tensors go into the store instead."""
        made = self._made(task)
        for first in range(0, len(users), CHUNK):
            for user, release in self._train_chunk(task, users[first : first + CHUNK], made):
                yield sending.pressed(self.scenario, task, release, user) if self.alone else release

    def _made(self, task: Task) -> Made:
        """How the private adapters of a round come about."""
        books = [x for x in (self.purse, self.own) if x]
        ledgers = tuple(f"{x.ledger.path.name}#{x.run}" for x in books)
        return Made(self.origin, task.round - 1, origin.of_state(task.shared), ledgers)

    def _train_chunk(self, task: Task, users: Sequence[str], made: Made) -> Iterator[tuple[str, Release]]:
        began, work = time.perf_counter(), Work()
        received, phases = self._received(task), self._phases(task)
        before = {user: self._state(user, task, received) for user in users}  # what cannot be read costs no budget
        owed = sending.owed(self.scenario, self.store, users, task.round, self.origin)
        paying = self._paying(task, users)
        began_with = {user: begun(self, user, state, task.round) for user, state in before.items()}
        parts = {user: [self._part(phase, user, task.round, began_with[user]) for phase in phases] for user in paying}
        users, noise = self._booked(task, phases, parts, began_with) if self.scenario.privacy.of_examples else (paying, {})
        yield from self._silent(task, received, [user for user in paying if user not in users])
        if not users:
            return
        states = [began_with[user] for user in users]
        if self.split.scheme.clusters > 1:
            states = self._chosen(users, states, received)
        for index, phase in enumerate(phases):
            turns = [Turn(user, parts[user][index], noise[user][index] if noise else 0.0) for user in users]
            states = self._phase(task, phase, turns, states, work)
        ready: dict[str, Release] = {}
        for user, state in zip(users, states, strict=True):
            private = {k: v for k, v in state.items() if self.split.kept(k)}
            keep = filed(private) if any(v is not before[user][k] for k, v in private.items()) else {}
            if user in owed and "shared" in task.turns:  # what is left out counts together with what is private
                ready[user], left = self._thinned(task, user, self._release(task, user, state, received), owed[user])
                keep = (filed(private) if private else {}) | {sending.OWED: left}
            if keep:
                self.store.save_parts(user, task.round, keep, made)
        share = {"tokens": work.tokens, "examples": work.examples, "loss": work.loss, "steps": work.steps,
                 "seconds": time.perf_counter() - began}  # fmt: skip
        for user, state in zip(users, states, strict=True):
            found = ready.pop(user, None) or self._thinned(task, user, self._release(task, user, state, received), {})[0]
            each = {k: v / len(users) for k, v in share.items()}
            yield user, sending.bounded(self.scenario, self._own_noise(), task, found, each)

    def _chosen(self, users: Sequence[str], states: list[State], received: State) -> list[State]:
        """What users have, each with the number of the cluster whose adapter fits their training examples best."""
        work, clusters = [self.dataset.users[user].train for user in users], range(self.split.scheme.clusters)
        adapters = [{f"shared/{n}": v.unsqueeze(0) for n, v in of(received, slot(j)).items()} for j in clusters]
        applied = Phase("shared", ("shared",), applies=("shared",))
        judged = [
            mean_losses(self.tower, self.trainer.blocks(x, applied), work, self.scenario.engine, self.dataset.label_ids)
            for x in adapters
        ]
        loss_KJ = torch.stack(judged, 1).cpu()
        drawn = [int(torch.randint(len(clusters), (1,), generator=generator(self.scenario.seed, u, "cluster"))) for u in users]
        fits = [d if bool((row == row[0]).all()) else int(row.argmin()) for row, d in zip(loss_KJ, drawn, strict=True)]
        return [s | {CHOICE: torch.full_like(s[CHOICE], float(j))} for s, j in zip(states, fits, strict=True)]

    def _phases(self, task: Task) -> list[Phase]:
        """The turns of a round. One that is alone in it sees all of a user's examples."""
        scheme = self.split.scheme
        found = [scheme.final] if "final" in task.turns else [p for p in scheme.phases if p.name in task.turns]
        if task.turns == ("shared",):
            found = [self._without_private(phase, task.round) for phase in found]
        return found if len(found) > 1 else [p._replace(part="all") for p in found]

    def _without_private(self, phase: Phase, round_: int) -> Phase:
        """A phase before private adapters have their first turn: they are not applied, unless the phase moves some of theirs.

        Every kind but a soft prompt begins as no change, so that this says something of soft prompts alone.
        """
        if any(k.startswith("private/") and self.split.moves(k, phase, round_) for k in self.start):
            return phase
        return phase._replace(applies=tuple(b for b in phase.applies or self.split.scheme.blocks if b != "private"))

    def _booked(self, task: Task, phases: Sequence[Phase],
                parts: Mapping[str, Sequence[Sequence[Encoded]]], states: Mapping[str, State]) -> tuple[list[str], Noises]:  # fmt: skip
        """The users whose budget allows this round, which is then booked, and the noise of each one's phases."""
        if self.purse is None:
            raise RuntimeError("a node that is to protect examples needs a purse")
        last = "final" in task.turns
        noise: Noises = {}
        costs: dict[str, dict[str, Event]] = {}
        for user, examples in parts.items():
            own, more = len(self.dataset.users[user].train), along(self, user, states[user])
            known = self.purse.noise(user, own, task.participations, more)
            if known is None:
                continue
            noise[user] = [known.get(budget.label(phase, last), 0.0) for phase in phases]
            spent = [self._cost(task, phase, z, len(x)) for phase, z, x in zip(phases, noise[user], examples, strict=True)]
            costs[user] = dict(zip((budget.label(phase, last) for phase in phases), spent, strict=True))
        allowed = self.purse.book(task.round, self.split.scheme, costs)
        return [user for user in parts if user in allowed], noise

    def _own_noise(self) -> OwnNoise | None:
        """What guards users' releases here, where that is not the server."""
        if not at_home(self.scenario):
            return None
        if self.own is None:
            raise RuntimeError("a node whose users noise their own releases needs a source of that noise")
        return self.own

    def _paying(self, task: Task, users: Sequence[str]) -> Sequence[str]:
        """Those whose budget of guarantee U allows a release in this round, if it is kept here."""
        own = self._own_noise()
        if own is None or "final" in task.turns:
            return users
        allowed = own.book(task, users)
        return [user for user in users if user in allowed]

    def _silent(self, task: Task, received: State, users: Sequence[str]) -> Iterator[tuple[str, Release]]:
        """What users send who have nothing to say: noise, where it is their own, so that nobody can tell."""
        for user in users if self._own_noise() and "shared" in task.turns else ():
            yield user, self._thinned(task, user, self._release(task, user, masked(received, self._mask(user)), received), {})[0]

    def _thinned(self, task: Task, user: str, release: Release, owed: State) -> tuple[Release, State]:
        return sending.thinned(self.scenario, self._own_noise(), task, user, release, owed)

    def _cost(self, task: Task, phase: Phase, noise: float, examples: int) -> Event:
        local = self._settings(task, phase)
        return budget.event(noise, examples, local.batch, local.epochs if examples or phase.part != "all" else 0)

    def _settings(self, task: Task, phase: Phase) -> Local:
        local, pull = budget.local(self.scenario, phase.name), self.split.aggregator.pull
        if pull and "shared" in phase.moves:
            local = replace(local, weight_decay=local.weight_decay + pull)
        return local if task.epochs is None else replace(local, epochs=task.epochs)

    def _phase(self, task: Task, phase: Phase, turns: Sequence[Turn], states: list[State], work: Work) -> list[State]:
        if phase.fresh:
            states = [{k: self.start[k] if self.split.owner(k) in phase.moves else v for k, v in s.items()} for s in states]
        states = [phase.begin(s, task) for s in states]
        learners = [self._learner(task, phase, x, state) for x, state in zip(turns, states, strict=True)]
        guard = self.purse.guard(phase) if self.scenario.privacy.of_examples and self.purse else None
        settings = self._settings(task, phase)
        moved, done = self.trainer.train(learners, lambda k: self.split.moves(k, phase, task.round), settings, guard, phase)
        work.add(done)
        after = [phase.end(s, {**s, **m}) for s, m in zip(states, moved, strict=True)]
        if not (self.split.aggregator.controls and "shared" in phase.moves):
            return after
        return [self._steered(task, settings, *each) for each in zip(turns, states, after, strict=True)]

    def _steered(self, task: Task, local: Local, turn: Turn, before: State, after: State) -> State:
        """What a user has with the control variates of after a phase."""
        steps, share = local.epochs * ceil(len(turn.train) / local.batch), task.cohort / task.everyone if task.everyone else 1.0
        changes = change(before, after, steps, local.lr)
        return renewed(after, masked(changes, self._mask(turn.user)), share)

    def _learner(self, task: Task, phase: Phase, turn: Turn, state: State) -> Learner:
        key, validation = (self.scenario.seed, task.round, turn.user, phase.name), self.dataset.users[turn.user].validation
        moving = [k for k in state if self.split.moves(k, phase, task.round)] if phase.pull else []
        anchor = {k: state[twin(k)] if self.split.is_twin(k) else state[k] for k in moving}
        steers = self.split.aggregator.controls and "shared" in phase.moves
        shift = masked(correction(state), self._mask(turn.user)) if steers else {}
        return Learner(state, turn.train, validation, key, turn.noise, self._mask(turn.user), shift, anchor)

    def _mask(self, user: str) -> State:
        """Which numbers of the shared adapter, and of copies of it, a user has; empty: all."""
        rank = rank_of(self.scenario, user, self.rank)
        if rank >= self.scenario.shared.rank:
            return {}
        if rank not in self.masks:
            self.masks[rank] = masks(self.start, ("shared", *self.split.scheme.twins), rank)
        return self.masks[rank]

    def _part(self, phase: Phase, user: str, round_: int, state: State) -> Sequence[Encoded]:
        """The training examples that a phase sees. Where two phases part them, the cut is drawn anew each round, between two units.

        A user with only one unit has nothing to part: the later phase sees nothing.
        """
        train = train_of(self, phase, user, state)
        if phase.part == "all":
            return train
        share = float(torch.empty(()).uniform_(*budget.CUTS, generator=generator(self.scenario.seed, round_, user, "cut")))
        between = [at for at in range(1, len(train)) if train[at].unit != train[at - 1].unit] or [len(train)]
        cut = min(between, key=lambda at: abs(at - share * len(train)))
        return train[:cut] if phase.part == "support" else train[cut:]

    def _release(self, task: Task, user: str, state: State, received: State) -> Release:
        weight = float(len(self.dataset.users[user].train)) if self.scenario.weights == "examples" else 1.0
        out = [k for k in state if "shared" in task.turns and self.split.released(k, task.round)]
        seen = masked(received, self._mask(user))
        update = {self.split.name(k): (state[k] - seen[k]).cpu() for k in out}
        if update and (at_home := self.split.aggregator.at_home):
            common = {self.split.name(k): v.cpu() for k, v in seen.items() if self.split.owner(k) == "shared"}
            update = at_home(task.round, common, update)
        if self.split.aggregator.hetero_rank:
            update = narrowed(update, rank_of(self.scenario, user, self.rank))
        return Release({n: v * weight for n, v in update.items()}, weight if update else 0.0)

    def _received(self, task: Task) -> State:
        """Tensors that all users have in common, on the device: what the server sent, and what the seed makes."""
        sent = {self.split.key(name): value.to(self.base.device) for name, value in task.shared.items()}
        return {k: sent.get(k, v) for k, v in self.start.items() if not self.split.kept(k)}

    def _state(self, user: str, task: Task, received: State) -> State:
        parts = self.store.parts(user, task.round, self.origin)
        stored = {**parts.get(PRIVATE, {}), **parts.get(MEMORY, {})}
        seen = masked(received, self._mask(user))
        return {**seen, **self.split.own(self.start, seen), **{k: v.to(self.base.device) for k, v in stored.items()}}

    # ------------------------------------------------------------------ evaluation
    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """One row per user: user, seen, train and test counts, and ``<control>.<metric>``.

        ``part`` is "validation" or "test". Unseen users get the rows that need nothing of their own.
        """
        rows = self._rows(task, part, wanted, list(self.dataset.users), seen=True)
        if part == "test" and self.dataset.unseen:
            common = [c for c in wanted if c in ("base", "shared")]
            rows += self._rows(task, part, common, list(self.dataset.unseen), seen=False)
        return rows

    def _rows(self, task: Task, part: str, wanted: Sequence[str], users: list[str], seen: bool) -> list[dict[str, Any]]:
        splits = [(self.dataset.users if seen else self.dataset.unseen)[u] for u in users]
        rows: list[dict[str, Any]] = [
            {"user": u, "seen": seen, "train": len(s.train), "test": len(s.test)} for u, s in zip(users, splits, strict=True)
        ]
        for control in wanted:
            found = self.control(control, task, part, users)
            for row, score, s in zip(rows, found, splits, strict=True) if found else ():
                examples: Sequence[Encoded] = getattr(s, part)
                if len(examples):
                    row |= {f"{control}.{k}": v for k, v in self.metrics(score, examples).items()}
        return rows

    def metrics(self, score: Tensor, examples: Sequence[Encoded]) -> dict[str, float | None]:
        """One user's numbers, by metric, of what `control` gives."""
        if self.dataset.label_ids:
            return controls.choice_metrics(score, [e.label for e in examples])
        return controls.token_metrics(score)

    def control(self, name: str, task: Task, part: str, users: list[str]) -> list[Tensor] | None:
        """Scores of one control for each user, or None where the scheme or the task has no such row."""
        blocks = self.split.scheme.blocks
        everyone = {**self.dataset.users, **self.dataset.unseen}
        work = [getattr(everyone[u], part) for u in users]
        if name == "base":
            return self._score([], work)
        if name == "shared" and "shared" in blocks:
            return self._score(self._common(task), work)
        if name == "local_only" and blocks == ("private",):
            return self._personal(task, users, work)
        if name == "shared_private" and self.split.has_private and blocks != ("private",):
            return self._personal(task, users, work)
        if name == "shuffled" and self.split.has_private and len(users) > 1 and blocks != ("private",):
            return self._personal(task, [*users[1:], users[0]], work)
        if name == "majority" and self.dataset.label_ids:
            count = len(self.dataset.label_ids)
            return [controls.majority_logits(everyone[u].train, len(w), count) for u, w in zip(users, work, strict=True)]
        if name == "user_bias" and self.dataset.label_ids and "shared" in blocks:
            return self._user_bias(task, users, work)
        return None

    def _user_bias(self, task: Task, users: list[str], work: list[Sequence[Encoded]]) -> list[Tensor]:
        blocks = self._common(task)

        def labelled(part: str) -> list[tuple[Tensor, Tensor]]:
            examples = [getattr(self.dataset.users[u], part) for u in users]
            labels = [torch.tensor([e.label for e in x], dtype=torch.long) for x in examples]
            return list(zip(self._score(blocks, examples), labels, strict=True))

        return controls.user_bias_logits(labelled("train"), labelled("validation"), self._score(blocks, work))

    def _common(self, task: Task) -> Blocks:
        """The shared adapter as a user without anything private has it."""
        state = {**self.start, **self._received(task)}
        shared = [x for x in self.split.layouts if x.block == "shared"]
        return [(x, {n: state[f"{x.block}/{n}"].unsqueeze(0) for n in x.names()}) for x in shared]

    def _personal(self, task: Task, owners: list[str], work: list[Sequence[Encoded]]) -> list[Tensor]:
        received, found = self._received(task), []
        for first in range(0, len(owners), CHUNK):
            some, asked = owners[first : first + CHUNK], work[first : first + CHUNK]
            states = [self._state(user, task, received) for user in some]
            if self.split.scheme.references:
                found += [self._weighed(*each) for each in zip(some, states, asked, strict=True)]
            else:
                found += self._score(self.trainer.blocks(together(states), self.split.scheme.final), asked)
        return found

    def _weighed(self, owner: str, state: State, examples: Sequence[Encoded]) -> Tensor:
        """A user's model where it is another for each text."""
        own = sampled(self.dataset.users[owner].train, self.split.scheme.references, (self.scenario.seed, owner))
        near_n1 = similarity(self.tower, examples, own).unsqueeze(1)
        blocks = self.trainer.blocks(together([state | {NEAR: x} for x in near_n1]), self.split.scheme.final)
        return torch.cat(self._score(blocks, [[e] for e in examples]) or [torch.zeros(0, len(self.dataset.label_ids) or 2)])

    def _score(self, blocks: Blocks, work: Sequence[Sequence[Encoded]]) -> list[Tensor]:
        return scores(self.tower, blocks, work, self.scenario.engine, self.dataset.label_ids)


def open_node(scenario: Scenario, folder: Path, base: bases.Base | None = None) -> Node:
    """Load the base and the data that a scenario names, and open a node that keeps private adapters under ``folder``."""
    base = base or bases.load(scenario.model, scenario.engine.device)
    dataset = data.load(scenario.data, base.tokenizer, scenario.seed, scenario.life)
    if not dataset.users:
        raise InputError("data: no user is left to train on")
    return Node(scenario, base, dataset, PrivateStore(folder))
