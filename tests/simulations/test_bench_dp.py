"""The benchmarks of privacy compare the same step, count what they say they count, and refuse where they did other work."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from client.flat import Flat
from configs.errors import InputError
from simulations.bench import dp, dp_ledger
from simulations.bench.dp_theirs import Opacus
from simulations.bench.measure import DifferentWorkError
from simulations.bench.world import TINY
from strategies.privacy import accounting
from strategies.privacy.events import Event

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def test_opacus_takes_the_same_clipped_step_by_hooks_and_by_ghost_clipping() -> None:
    found = dp.opacus("opacus_hooks_any", TINY, 1)
    assert list(found) == ["opacus_hooks_any", "opacus_ghost_any"]
    assert all(figure.ours > 0 and figure.theirs > 0 for figure in found.values())


@pytest.mark.parametrize("wrong", ["clip", "ours"])
def test_another_bound_on_either_side_is_caught(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    if wrong == "clip":
        right = Opacus.__init__
        monkeypatch.setattr(Opacus, "__init__", lambda self, model, size, clip, ghost: right(self, model, size, clip * 0.9, ghost))
    else:
        total = Flat.accumulate_clipped
        monkeypatch.setattr(Flat, "accumulate_clipped", lambda self, loss, leaves, clip: total(self, loss, leaves, clip * 0.9))
    with pytest.raises(DifferentWorkError):
        dp.opacus("opacus_hooks", TINY, 1)


def test_a_guarded_step_that_loses_a_part_of_a_gradient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    total = Flat.accumulate_clipped

    def part(self: Flat, loss: torch.Tensor, leaves: dict[str, torch.Tensor], clip: float) -> None:
        total(self, loss, leaves, clip)
        self.grad_KP[:, : self.grad_KP.shape[1] // 8] = 0

    monkeypatch.setattr(Flat, "accumulate_clipped", part)
    with pytest.raises(DifferentWorkError):
        dp.steps("dp_step", TINY, 1)


def test_seconds_are_of_this_process_on_a_cpu_and_of_the_wall_elsewhere() -> None:
    assert dp.unit(torch.device("cpu")) == "CPU s per example"
    assert dp.unit(torch.device("cuda", 0)) == "wall s per example, cuda"
    assert dp.clock(torch.device("cpu")) is not dp.clock(torch.device("cuda", 0))


def test_no_two_users_of_the_ledgers_benchmark_share_a_history(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[tuple[Event, ...]]] = []
    right = accounting.epsilons

    def watched(histories: Sequence[tuple[Event, ...]], delta: float, accountant: str = "pld") -> list[float]:
        seen.append(histories)
        return right(histories, delta, accountant)

    monkeypatch.setattr("strategies.privacy.bounds.epsilons", watched)
    found = dp_ledger.rounds("ledger_round", replace(TINY, users=40), 1)
    assert list(found) == ["ledger_round", "ledger_round_poisson"]
    whole = seen[0]
    assert len(set(whole)) == len(whole) == 40
    sampled = [(dp_ledger.poisson(user, 1 + user % 7),) for user in range(40)]
    assert len(set(sampled)) == 40


def test_a_ledger_whose_users_are_refused_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_ledger, "EPSILON", 0.01)
    with pytest.raises(InputError, match="no budget left"):
        dp_ledger.rounds("ledger_round", replace(TINY, users=3), 1)


def test_the_benchmarks_of_steps_load_neither_flower_nor_an_accountants_library(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy, own = ("flwr", "dp_accounting", "opacus"), ("configs", "strategies", "client", "server", "simulations")
    for name in [name for name in sys.modules if name.partition(".")[0] in heavy + own]:
        monkeypatch.delitem(sys.modules, name)
    for name in own:  # as in a process of its own that has imported no module of this project
        assert name not in sys.modules
    importlib.import_module("simulations.bench.suite")
    assert not set(heavy) & set(sys.modules)
    importlib.import_module("server.grid")
    assert "flwr" in sys.modules
