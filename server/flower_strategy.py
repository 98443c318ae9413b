"""A scenario of ours as a strategy of Flower's."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from client import wire
from configs.errors import InputError
from configs.scenario import Scenario
from server import aggregation, rounds
from server.admission import admitted
from server.grid import GridRuntime, among, orders, questions, releases, rows
from strategies import riding
from strategies.base import Release, Task
from strategies.privacy import rules
from strategies.privacy.joint import needed
from strategies.tree import State, norm, subtract

log = logging.getLogger("flwr.homing")


class HomingStrategy(Strategy):
    """A scenario as a strategy of Flower's: ``HomingStrategy(scenario).start(grid, initial_arrays, num_rounds)``.

    The nodes run `client.app`. ``initial_arrays`` is ``ArrayRecord(client.node.split(scenario, base).shared_start())``, and
    ``num_rounds`` is `server.rounds.last_round`. The rounds are those of `server.rounds.run`: same users, same numbers. What
    that loop has and ``start`` has not: checkpoints, resuming, the report. There is no ``train_loss`` where nodes keep their counters.
    """

    def __init__(self, scenario: Scenario, nodes: int = 0) -> None:
        rules.refuse(scenario)
        if needed(scenario):
            raise InputError("HomingStrategy has no ledger, which guarantee U needs; use the ServerApp server.app")
        if scenario.privacy.secure:
            raise InputError("HomingStrategy has one exchange a round and privacy.secure needs four; use the ServerApp server.app")
        if scenario.root_users:
            raise InputError(
                "HomingStrategy asks all users at once and root_users are asked by themselves; use the ServerApp server.app"
            )
        self.scenario, self.nodes = scenario, nodes
        self.aggregator = aggregation.build(scenario)
        self.runtime: GridRuntime | None = None
        self.users: list[str] = []
        self.shared: State = {}
        self.memory: State | None = None
        self.asked: dict[int, list[str]] = {}
        self.task = Task(0, {})

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Order this round's users to be trained."""
        if config:
            raise InputError("train_config has no part in a run of Homing: say it in the scenario")
        runtime = self._runtime(grid)
        if server_round == 1:
            self.memory = None
        self.shared = dict(arrays.to_torch_state_dict())
        self.task = rounds.plan(self.scenario, self.shared, server_round, len(self.users))
        self.asked = among(runtime.homes(), rounds.sample(self.scenario, self.users, server_round))
        return orders(self.asked, self.task, runtime.run)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:  # noqa: ARG002
        """Check the releases and let the scenario's aggregator make the next shared adapter of them."""
        assert self.runtime is not None
        dropped: Counter[str] = Counter()
        sums: Counter[str] = Counter()

        def counted(found: Iterable[Release]) -> Iterator[Release]:
            for release in found:
                sums.update({"users": release.users, **release.metrics})  # type: ignore[dict-item]
                yield release

        memory = self.aggregator.init(self.shared) if self.memory is None else self.memory
        sent = releases(self.asked, self.task, replies, self.runtime.failed)
        found = admitted(sent, self.shared, self.scenario.max_release_norm, dropped, narrow=self.aggregator.hetero_rank)
        self.memory, shared = self.aggregator.apply(memory, self.shared, counted(found))
        said = {"users": sums["users"], "dropped": dropped.total(), "update_norm": norm(subtract(shared, self.shared))}
        if sums["examples"]:
            said["train_loss"] = sums["loss"] / sums["examples"]
        said |= _flat(riding.means(sums), "before.")
        return wire.encode_state(shared), MetricRecord({name: float(value) for name, value in said.items()})

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Ask for the validation split in the rounds in which the scenario evaluates."""
        if config:
            raise InputError("evaluate_config has no part in a run of Homing: say it in the scenario")
        runtime, wanted = self._runtime(grid), rounds.apart(self.scenario, server_round)
        if not wanted or "scores" not in runtime.lets():
            return []
        after = Task(server_round + 1, dict(arrays.to_torch_state_dict()))
        return questions(runtime.homes(), after, runtime.run, "validation", wanted)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:  # noqa: ARG002
        """Means over users, as ``<row>.<metric>``."""
        assert self.runtime is not None
        found = list(replies)
        if not found:
            return None
        means = rounds.averages(rows(self.runtime.homes(), found, self.runtime.failed))
        return MetricRecord(_flat(means))  # type: ignore[arg-type]

    def summary(self) -> None:
        """Log what is run."""
        log.info("\t└──> Homing: %s, scheme %s, aggregator %s", self.scenario.name, self.scenario.scheme, self.scenario.aggregator)

    def _runtime(self, grid: Grid) -> GridRuntime:
        if self.runtime is None or self.runtime.grid is not grid:
            self.runtime = GridRuntime(grid, str(grid.run.run_id), self.nodes)
            self.users = list(self.runtime.users())
        return self.runtime


def _flat(means: Mapping[str, Mapping[str, float]], start: str = "") -> dict[str, float]:
    return {f"{start}{row}.{metric}": value for row, columns in means.items() for metric, value in columns.items()}
