"""Rounds whose releases the server sees as one sum: what is asked, what comes of it, and the same in one process.

`SecureRuntime` is for simulations, in which users are dealt out over `Masking.nodes` nodes as Flower's partitions deal them out;
`server.secure_grid` is the same over Flower. The protocol is `server.unmasking`'s, the vectors are `client.secure`'s.
"""

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from client import secure
from client.masking import MODULUS, MaskingError
from client.secure import Call, Form
from configs.scenario import Scenario
from server.sampling import dealt
from server.unmasking import sum_here
from strategies import aggregators
from strategies.base import Release, Runtime, Task, Traffic
from strategies.packing import pack
from strategies.privacy.joint import Plan
from strategies.tree import norm

log = logging.getLogger("flwr.homing")
COARSE = 0.01  # share of a sum that rounding may have moved it by (root mean square) before somebody is told

Asked = Mapping[str, Sequence[str]]  # party -> the users of a round that it keeps
Summing = Callable[[Call, Form], tuple[Tensor, tuple[str, ...]]]  # -> the sum, and the parties that are in it


def released(scenario: Scenario, task: Task, asked: Asked, plan: Plan | None, summing: Summing,
             failed: Counter[str]) -> Iterator[Release]:  # fmt: skip
    """A round's one release. With too few nodes there is none: it is counted in ``failed``, logged, and the run goes on.

    Args:
        scenario: `privacy.secure` is on.
        task: of the round.
        asked: who takes part.
        plan: of the sum's noise, under guarantee U.
        summing: makes the sum.
        failed: rounds that gave nothing, by reason.
    """
    if len(asked) < 2:
        _gives_nothing(task, f"a secure sum needs two nodes with users of the round, and there is {len(asked)}", failed)
        return
    noise, denominator = (plan.noise, float(plan.cohorts.expected)) if plan and "shared" in task.turns else (0.0, 0.0)
    call = Call(secrets.token_hex(16), sum(map(len, asked.values())), len(asked), noise)
    how = secure.form(scenario, aggregators.build(scenario.aggregator, scenario.aggregator_options), task, call)
    try:
        sum_M, kept = summing(call, how)
    except MaskingError as error:
        _gives_nothing(task, str(error), failed)
        return
    release = secure.read(sum_M, how, sum(len(asked[name]) for name in kept), denominator)
    if release is not None:
        _told(how, release, call.users)
        yield release


class SecureRuntime:
    """A `Runtime` of one process whose users' releases the round loop sees as one secure sum a round.

    ``plan``: of the noise, under guarantee U. ``drop_at``: see `server.unmasking.sum_here`.
    """

    def __init__(self, inner: Runtime, scenario: Scenario, plan: Plan | None = None, drop_at: Mapping[str, str] | None = None) -> None:
        self.inner, self.scenario, self.plan, self.drop_at = inner, scenario, plan, drop_at
        self.failed: Counter[str] = Counter()  # rounds that gave nothing, by reason
        self.traffic = Traffic()  # of orders and vectors; keys and shares come on top

    def users(self) -> Sequence[str]:
        """All users that may train."""
        return self.inner.users()

    def train(self, task: Task, users: Sequence[str]) -> Iterator[Release]:
        """Train each node's users and yield the sum of what all of them release."""
        scenario = self.scenario
        asked = dealt(self.users(), users, scenario.privacy.masking.nodes)
        self.traffic.down += pack(task.shared).nbytes() * len(asked)

        def summing(_call: Call, how: Form) -> tuple[Tensor, tuple[str, ...]]:
            vectors = {
                name: secure.vector(
                    scenario, task, how, self.inner.train(task, kept), len(kept), secure.seeded(scenario, task, kept[0])
                )
                for name, kept in asked.items()
            }
            drops = {name: step for name, step in (self.drop_at or {}).items() if name in asked}
            self.traffic.up += 4 * how.terms.size * len(vectors)
            return sum_here(how.terms, vectors, drops, MODULUS // 2 - 1)

        return released(scenario, task, asked, self.plan, summing, self.failed)

    def evaluate(self, task: Task, part: str, wanted: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of all users."""
        return self.inner.evaluate(task, part, wanted)


def _gives_nothing(task: Task, why: str, failed: Counter[str]) -> None:
    failed[why] += 1
    log.warning("round %d gives nothing: %s", task.round, why)


def _told(how: Form, release: Release, users: int) -> None:
    """Say so where the bound is so large that the grid is too coarse for what was sent."""
    size = sum(value.numel() for value in how.like.values())
    moved, length = how.grid.step * (users * size / 4) ** 0.5, norm(release.update)
    if release.update and not how.grid.noise and moved > COARSE * length:
        log.warning("rounding may have moved the sum by %.0f %%: the bound %g is too large for it", 100 * moved / max(length, 1e-30),
                    how.grid.bound)  # fmt: skip
