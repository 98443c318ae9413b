"""The one round loop: sample users, train, admit, aggregate, evaluate, commit. It sees a `Runtime`, never what is behind it."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from client.store.manifest import Origin
from configs.errors import InputError
from configs.scenario import Scenario
from server import checkpoint
from server.admission import admitted
from server.checkpoint import Checkpoint
from server.joint import Joint
from server.sampling import invited, participations, sample
from server.span import before, last_round
from strategies import riding, schemes
from strategies.base import Aggregator, Metered, Release, Runtime, Task, Traffic
from strategies.compressors import down
from strategies.privacy.joint import bound, needed
from strategies.sums import total
from strategies.tree import State, nbytes, norm, subtract

Observer = Callable[[dict[str, Any]], None]
SLACK = 1 + 1e-4  # a sum of clipped releases in float32 may be so much longer than in exact numbers


def run(scenario: Scenario, runtime: Runtime, aggregator: Aggregator, shared: State, folder: Path,
        observe: Observer = lambda _row: None, joint: Joint | None = None, origin: Origin | None = None,
        since: Checkpoint | None = None) -> Checkpoint:  # fmt: skip
    """Run or resume a scenario in ``folder`` and return its last round. ``shared`` is where the first round starts.

    ``origin``: of the base that is loaded; a shared adapter that was made on another is refused (None: not asked).

    ``observe`` is called with each round's row once the round is final. ``joint``: guarantee U by noise on the sum of each round.
    ``since``: the last round of the period before, from which a later period of a life goes on.
    """
    checkpoint.begin(folder, scenario)
    if needed(scenario) and joint is None:
        raise RuntimeError("a server that is to protect users needs a plan of the noise")
    aggregator = joint.around(aggregator) if joint else aggregator
    made, first = (origin or Origin())._replace(adapter=""), before(scenario)
    start = Checkpoint(0, shared, aggregator.init(shared), [], made)
    state = checkpoint.latest(folder, origin) or _begun(first, since) or start
    for number in range(state.round + 1, first + last_round(scenario) + 1):
        users = invited(scenario, runtime.users())  # whoever has come by now
        trained = joint.users if joint else users
        task = replace(plan(scenario, state.shared, number, len(trained)), bound=bound(scenario, state.memory))
        chosen = joint.sample(number) if joint and number - first <= scenario.rounds else sample(scenario, users, number)
        state = _round(scenario, runtime, aggregator, state, task, chosen)
        began = time.perf_counter()
        checkpoint.commit(folder, state)
        observe(state.rows[-1] | {"commit_seconds": time.perf_counter() - began})
    return state


def _begun(first: int, since: Checkpoint | None) -> Checkpoint | None:
    """Where a later period begins. Raises `InputError` where that is not where the period before has ended."""
    if first != (since.round if since else 0):
        said = f"after round {since.round}" if since else "nowhere"
        raise InputError(f"this period begins after round {first}, and the period before has ended {said}; finish that one first")
    return replace(since, rows=[]) if since else None


def plan(scenario: Scenario, shared: State, number: int, users: int) -> Task:
    """What a round asks of its users, of so many in the run."""
    turn = number - before(scenario)
    most, cohort = participations(scenario, users), min(scenario.users_per_round or users, users)
    shared, rows = down(shared, scenario.wire), along(scenario, number)
    if turn > scenario.rounds:
        return Task(number, shared, ("final",), scenario.personalize, most, cohort=cohort, everyone=users, rows=rows)
    both = "shared" in schemes.of(scenario).blocks and turn <= scenario.private_from
    turns = ("shared",) if both else ("shared", "private")
    return Task(number, shared, turns, participations=most, cohort=cohort, everyone=users, rows=rows)


def followed(scenario: Scenario, number: int) -> tuple[str, ...]:
    """The rows that are scored on the validation split after a round: every so often, and after the last one.

    Where private adapters begin anew each round, the shared one is nothing by itself.
    """
    every, alone = scenario.evaluate_every, not schemes.of(scenario).final.fresh
    turn = number - before(scenario)
    due = every and (turn % every == 0 or turn == last_round(scenario))
    return tuple(row for row in riding.ROWS if alone or row != "shared") if due else ()


def apart(scenario: Scenario, number: int) -> tuple[str, ...]:
    """The rows that are followed after a round in an exchange of its own."""
    last = number - before(scenario) == last_round(scenario)
    return followed(scenario, number) if last or not scenario.evaluate_along else ()


def along(scenario: Scenario, number: int) -> tuple[str, ...]:
    """The rows that ride with a round's training: those that are followed after the round before, of users asked in this one."""
    return followed(scenario, number - 1) if scenario.evaluate_along and number - before(scenario) > 1 else ()


def _round(scenario: Scenario, runtime: Runtime, aggregator: Aggregator, state: Checkpoint, task: Task,
           chosen: list[str]) -> Checkpoint:  # fmt: skip
    tally, clock = _Tally(runtime, task, len(chosen)), _Clock()
    releases = admission_of(scenario, runtime, task, chosen, state.shared, tally, aggregator.hetero_rank)
    memory, shared = aggregator.apply(state.memory, state.shared, clock.each("train", releases))
    clock.lap("aggregate")
    row = {
        "round": task.round,
        "users": len(chosen),
        "releases": tally.users,
        "dropped": dict(tally.dropped),
        "bytes_up": tally.bytes().up,
        "bytes_down": tally.bytes().down,
        "tokens": round(tally.metrics["tokens"]),
        "steps": round(tally.metrics["steps"]),
        "train_loss": tally.metrics["loss"] / tally.metrics["examples"] if tally.metrics["examples"] else None,
        "update_norm": norm(subtract(shared, state.shared)),
    }
    if tally.metrics["load"]:  # nodes are other processes, and say so
        row["node_seconds"] = {"loading": tally.metrics["load"], "training": tally.metrics["seconds"]}
    if before_it := riding.means(tally.metrics):
        row["validation_before"] = before_it
    if wanted := apart(scenario, task.round):
        row["validation"] = averages(runtime.evaluate(Task(task.round + 1, shared), "validation", wanted))
        clock.lap("evaluate")
        if scored := tally.bytes().scored:
            row["bytes_scored"] = scored
    row["seconds"] = clock.seconds
    return replace(state, round=task.round, shared=shared, memory=memory, rows=[*state.rows, row])


def admission_of(scenario: Scenario, runtime: Runtime, task: Task, users: list[str], shared: State,
                 tally: "_Tally", narrow: bool) -> Iterator[Release]:  # fmt: skip
    """The round's releases that are in order, counted on their way; ``narrow``: they may have fewer ranks than the shared adapter.

    First, uncounted, the sum of those of the server's own users, where the scenario names any.
    """
    limit = min(scenario.max_release_norm, task.bound * SLACK) if task.bound else scenario.max_release_norm
    uniform = scenario.privacy.of_users
    if scenario.privacy.secure:  # nodes have bounded what is in a secure sum, and its weight is what the plan says
        limit, uniform = inf, False

    def let_in(task: Task, users: Sequence[str]) -> Iterator[Release]:
        return admitted(runtime.train(task, users), shared, limit, tally.dropped, uniform, narrow)

    if scenario.root_users:
        own = replace(task, participations=scenario.rounds, rows=())
        yield from (replace(r, root=True) for r in total(let_in(own, scenario.root_users)))
        tally.begin()
    for release in let_in(task, users):
        tally.add(release)
        yield release


def averages(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean over users of every ``<control>.<metric>`` column."""
    columns: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for key, value in row.items():
            control, dot, metric = key.partition(".")
            if dot and value is not None:
                columns.setdefault(control, {}).setdefault(metric, []).append(value)
    return {c: {m: float(np.mean(v)) for m, v in found.items()} for c, found in columns.items()}


class _Tally:
    """What went over the wire in a round; where a runtime does not count it, every user's release and what every user received."""

    def __init__(self, runtime: Runtime, task: Task, asked: int) -> None:
        self.meter = runtime.traffic if isinstance(runtime, Metered) else Traffic(0, nbytes(task.shared) * asked)
        self.counts, self.before = isinstance(runtime, Metered), Traffic()
        self.dropped: Counter[str] = Counter()
        self.metrics: Counter[str] = Counter(tokens=0, steps=0, loss=0, examples=0)
        self.users = 0
        if self.counts:
            self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self.before = replace(self.meter) if self.counts else self.before

    def add(self, release: Release) -> None:
        self.users += release.users
        self.meter.up += 0 if self.counts else nbytes(release.update)
        for name, value in release.metrics.items():
            self.metrics[name] += value  # type: ignore[assignment]

    def bytes(self) -> Traffic:
        """Of messages since the round began."""
        return Traffic(*(now - then for now, then in zip(astuple(self.meter), astuple(self.before), strict=True)))


class _Clock:
    """Seconds by part. Training and streaming aggregation alternate, so the former is timed item by item."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now

    def each(self, part: str, items: Iterable[Release]) -> Iterator[Release]:
        for item in items:
            self.lap(part)
            yield item
            self.lap("aggregate")
        self.lap(part)
