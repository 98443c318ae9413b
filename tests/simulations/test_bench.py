"""A benchmark compares only what is the same work, says in what unit, and writes it down."""

import ast
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from client.base import Base
from configs.errors import InputError
from simulations.bench import federation, flower, flower_app, peft_loop, suite
from simulations.bench.measure import DifferentWorkError, Figure, Result, agree, alternate, mean_state
from simulations.bench.ours import Fused
from simulations.bench.theirs import Lean, Usual
from simulations.bench.world import TINY, layouts, local, random_ids, random_model, starts
from strategies.tree import State
from tests.simulations.command import call

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
Visit = Callable[[Sequence[State], Tensor], Result]


@pytest.fixture
def fused() -> Iterator[Fused]:
    found = Fused(random_model(TINY), TINY)
    yield found
    found.close()


def test_the_command_writes_every_quick_figure_with_its_unit(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    said = call("bench", "--quick", "--out", out)
    assert said.code == 0, said.err
    figures = json.loads(out.read_text())
    assert list(figures) == [name for b in suite.BENCHMARKS if b.quick for name in b.names]
    for name, figure in figures.items():
        assert set(figure) == {"ours", "theirs", "ratio", "unit"}
        assert figure["ours"] > 0 and figure["theirs"] > 0
        by = figure["theirs"] / figure["ours"] if "tokens per" not in figure["unit"] else figure["ours"] / figure["theirs"]
        assert figure["ratio"] == pytest.approx(by)
        assert name in said.out


def test_one_benchmark_can_be_asked_for_by_any_of_its_figures_and_is_told_as_soon_as_it_is_done() -> None:
    told: list[list[str]] = []
    found = suite.run("fused_vs_peft_overhead_lean", True, lambda so_far: told.append(list(so_far)))
    assert told == [list(found)] == [["fused_vs_peft_overhead", "fused_vs_peft_overhead_lean"]]
    with pytest.raises(InputError, match="did you mean 'fused_vs_pooled'"):
        suite.run("fused_vs_poled")


def test_every_target_belongs_to_a_figure() -> None:
    assert set(suite.TARGETS) <= {name for b in suite.BENCHMARKS for name in b.names}


def test_the_profile_names_operators() -> None:
    assert "aten::" in suite.operators("fused_vs_peft_compute", quick=True)


# ---------------------------------------------------------------------- the same work
def test_engine_and_both_peft_loops_end_at_the_same_adapters(fused: Fused) -> None:
    model, ids = random_model(TINY), random_ids(TINY)
    begin = starts(TINY, fused.layouts)
    reached = fused.visit(begin, ids, local(TINY))
    lean = Lean(model, TINY)
    for theirs in (Usual(model, TINY).visit(begin, ids), lean.visit(begin, ids), lean.visit(begin, ids)):
        assert agree(reached, theirs, begin) < 1e-3


def swapped_users(visit: Visit) -> Visit:
    return lambda begin, ids: visit(begin, ids.roll(1, 0))


def one_start_for_all(visit: Visit) -> Visit:
    return lambda begin, ids: visit([begin[0]] * len(begin), ids)


def one_adapter_only(visit: Visit) -> Visit:
    def wrong(begin: Sequence[State], ids: Tensor) -> Result:
        found = visit(begin, ids)
        return Result([{n: v for n, v in s.items() if n.startswith("shared/")} for s in found.states], found.loss)

    return wrong


def no_training(visit: Visit) -> Visit:
    return lambda begin, ids: Result(list(begin), visit(begin, ids).loss)


def one_user_only(visit: Visit) -> Visit:
    return lambda begin, ids: visit(begin[:1], ids[:1])


def half_a_step(visit: Visit) -> Visit:
    def wrong(begin: Sequence[State], ids: Tensor) -> Result:
        found = visit(begin, ids)
        halves = [{n: (v + b[n]) / 2 for n, v in s.items()} for s, b in zip(found.states, begin, strict=True)]
        return Result(halves, found.loss)

    return wrong


@pytest.mark.parametrize("fault", [swapped_users, one_start_for_all, one_adapter_only, no_training, one_user_only, half_a_step])
@pytest.mark.parametrize("side", [Usual, Lean])
def test_a_baseline_that_does_other_work_is_caught(
    monkeypatch: pytest.MonkeyPatch, side: type[Usual] | type[Lean], fault: Callable[[Visit], Visit]
) -> None:
    right = side.visit
    monkeypatch.setattr(side, "visit", lambda self, begin, ids: fault(lambda b, i: right(self, b, i))(begin, ids))
    with pytest.raises(DifferentWorkError):
        peft_loop.sequential("wrong", TINY, 1)


def test_a_baseline_with_another_scale_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulations.bench.theirs.ALPHA", 32)
    with pytest.raises(DifferentWorkError):
        peft_loop.sequential("wrong", TINY, 1)
    with pytest.raises(DifferentWorkError):
        peft_loop.pooled("wrong", TINY, 1)


def test_what_is_not_a_number_agrees_with_nothing() -> None:
    start, nan = {"w": torch.zeros(2)}, {"w": torch.full((2,), torch.nan)}
    with pytest.raises(DifferentWorkError):
        agree(Result([nan], 1.0), Result([{"w": torch.ones(2)}], 1.0), [start])
    with pytest.raises(DifferentWorkError):
        agree(Result([{"w": torch.ones(2)}], torch.nan), Result([{"w": torch.ones(2)}], 1.0), [start])


# ---------------------------------------------------------------------- time
def test_sides_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []
    cost = {"a": iter([100, 1, 5, 2]), "b": iter([100, 7, 7, 9])}
    now = [0.0]

    def side(name: str) -> Callable[[], None]:
        def work() -> None:
            calls.append(name)
            now[0] += next(cost[name])

        return work

    assert alternate({"a": side("a"), "b": side("b")}, 3, clock=lambda: now[0]) == {"a": 2, "b": 7}
    assert calls == ["a", "b"] * 4


def test_cpu_time_is_measured_on_one_thread_and_the_threads_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), set[int]()
    right = Usual.visit
    monkeypatch.setattr(Usual, "visit", lambda self, b, i: (seen.add(torch.get_num_threads()), right(self, b, i))[1])
    peft_loop.sequential("any", TINY, 1)
    assert seen == {1} and torch.get_num_threads() == before


def test_a_ratio_above_one_always_means_that_ours_is_better() -> None:
    assert Figure(1.0, 2.0, "s").ratio == 2.0
    assert Figure(2.0, 1.0, "tokens per s", higher_is_better=True).ratio == 2.0


# ---------------------------------------------------------------------- Flower
def test_our_federation_is_fedavg_over_the_usual_client(tmp_path: Path) -> None:
    size = replace(TINY, users=5, blocks=("shared",))
    start = flower.prepare(tmp_path, size)
    federation.run(tmp_path, 1)
    said = json.loads((tmp_path / "ours.json").read_text())
    model = random_model(size)
    named = {f"shared/{n}": v for n, v in start.items()}
    each = Usual(model, size).visit([named] * size.users, random_ids(size))
    mean = {n.removeprefix("shared/"): v for n, v in mean_state(each.states).items()}
    ours = Result([load_file(tmp_path / "ours.safetensors")], statistics.mean(said["losses"]))
    assert agree(ours, Result([mean], each.loss), [start]) < 1e-3
    assert start.keys() == layouts(size, Base(model, None, "random"))[0].start.keys()


def test_the_usual_app_is_valid_and_knows_nothing_of_this_project(tmp_path: Path) -> None:
    for path in sorted(flower_app.write(tmp_path).rglob("*.py")):
        tree = ast.parse(path.read_text())
        modules = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not {m.partition(".")[0] for m in modules} & {"client", "server", "strategies", "configs", "simulations"}
        if path.stem != "__init__":  # what `flwr run` looks for is a plain assignment
            assert any(isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "app" for n in tree.body)


def test_the_first_round_does_not_count_as_a_later_one() -> None:
    assert flower.later_round([100.0, 103.0]) == 3.0
    assert flower.later_round([0.0, 100.0, 103.0]) == 3.0  # Flower's clock also has a mark before the first round
