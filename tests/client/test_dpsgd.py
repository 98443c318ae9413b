"""Guarded training: what a unit adds is bounded and noised, for each user by themselves, whatever else is in the pass."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import opacus
import peft
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from client import dpsgd
from client.adapters.layout import Layout, layout
from client.base import Base
from client.data.types import Encoded
from client.dpsgd import Guard
from client.learner import Learner
from client.planner import unit_passes
from client.tower import Tower
from client.train import Trainer
from configs.scenario import Adapter, Engine, Local
from strategies.privacy import budget
from strategies.privacy.events import Event
from strategies.privacy.noise import keyed
from strategies.tree import State, norm, subtract

Texts = Callable[..., list[Encoded]]
FULL = Local(optimizer="sgd", lr=1.0, batch=100, epochs=1, max_norm=0.0)
LORA = Adapter(rank=3, layers=2)
KINDS = {
    "lora": LORA,
    "core": Adapter(kind="core", rank=3, layers=2),
    "mixed": Adapter(kind="mixed", rank=3, layers=2),
    "ia3": Adapter(kind="ia3", layers=2),
    "prompt": Adapter(kind="prompt", tokens=3),
    "late_prompt": Adapter(kind="late_prompt", tokens=3, layers=2),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LOOSE = Guard(1e9, keyed)
ENGINE = Engine()


def start(found: Layout, user: int) -> State:
    """One user's state away from the start, so that every factor has a gradient."""
    draw = torch.Generator().manual_seed(1000 + user)
    return {f"{found.block}/{n}": v + 0.1 * torch.randn(v.shape, generator=draw) for n, v in found.start.items()}


def fit(base: Base, users: Mapping[int, Sequence[Encoded]], local: Local, guard: Guard | None, kind: str = "lora",
        engine: Engine = ENGINE, noise: float = 0.0, moves: Callable[[str], bool] = lambda _: True,
        label_ids: tuple[int, ...] = ()) -> dict[int, State]:  # fmt: skip
    """What each user's tensors move by."""
    blocks = (layout("shared", LORA, base, 0), layout("private", KINDS[kind], base, 0))
    tower = Tower(base, blocks, engine)
    try:
        states = {u: start(blocks[0], 0) | start(blocks[1], u) for u in users}
        learners = [Learner(states[u], x, [], (0, 1, u, "both"), noise) for u, x in users.items()]
        found, _ = Trainer(tower, blocks, engine, label_ids).train(learners, moves, local, guard)
        return {u: subtract(moved, states[u]) for u, moved in zip(users, found, strict=True)}
    finally:
        tower.close()


def apart(a: State, b: State) -> float:
    """The largest difference of two states."""
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["answer", "choice"])
def test_with_a_loose_bound_and_no_noise_it_is_plain_training(base: Base, texts: Texts, kind: str, task: str) -> None:
    local = replace(FULL, epochs=2, lr=0.1)
    users = {u: texts(u, 1 + 2 * u, task) for u in range(3)}
    labels = (4, 5) if task == "choice" else ()
    plain, guarded = (fit(base, users, local, guard, kind, label_ids=labels) for guard in (None, LOOSE))
    assert max(norm(plain[u]) for u in users) > 1e-2
    assert max(apart(plain[u], guarded[u]) for u in users) < 2e-6


@pytest.mark.parametrize("kind", ["core", "mixed", "ia3"])
def test_one_block_may_be_guarded_while_the_other_stays(base: Base, texts: Texts, kind: str) -> None:
    users = {u: texts(u, 1 + 2 * u) for u in range(3)}
    for block in ("shared/", "private/"):
        found = [fit(base, users, FULL, guard, kind, moves=lambda n, b=block: n.startswith(b)) for guard in (None, LOOSE)]
        assert max(apart(found[0][u], found[1][u]) for u in users) < 1e-5


def of_opacus(model: Any, state: State, examples: Sequence[Encoded], clip: float) -> State:
    """The mean of clipped gradients that Opacus makes of a stock PEFT model; names are PEFT's."""
    config = peft.LoraConfig(r=3, lora_alpha=16, target_modules=LINEAR, layers_to_transform=[1, 2], task_type="CAUSAL_LM")
    wrapped: Any = opacus.GradSampleModule(peft.get_peft_model(model, config).train(), strict=False, loss_reduction="sum")
    trained = {n.removeprefix("_module.").replace(".default", ""): p for n, p in wrapped.named_parameters() if p.requires_grad}
    for name, value in trained.items():
        value.data = state[f"shared/{name}"].clone()
    sgd = torch.optim.SGD(trained.values(), lr=1.0)
    optimizer = DPOptimizer(sgd, noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=None, loss_reduction="sum")
    ids = torch.stack([e.ids for e in examples])
    logits = wrapped(input_ids=ids).logits[:, examples[0].start - 1 : -1]
    torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, examples[0].start :], reduction="none").mean(1).sum().backward()
    optimizer.pre_step()
    return {f"shared/{name}": value.grad / len(examples) for name, value in trained.items()}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # of torch, about Opacus' hooks on a first layer
@pytest.mark.parametrize("clip", [1e9, 0.5])
def test_gradients_are_those_of_opacus(base: Base, texts: Texts, clip: float) -> None:
    examples, stock = texts(0, 5, length=9), copy.deepcopy(base.model)
    block = layout("shared", LORA, base, 0)
    state = start(block, 0)
    learner = Learner(state, examples, [], (0, 1, 0, "shared"))
    moved, _ = Trainer(Tower(base, (block,), Engine()), (block,), Engine()).train([learner], lambda _: True, FULL, Guard(clip, keyed))
    theirs = of_opacus(stock, state, examples, clip)
    assert theirs.keys() == moved[0].keys()
    assert apart(subtract(state, moved[0]), theirs) < 1e-5 * norm(theirs)


def documents(texts: Texts, user: int, sizes: Sequence[int]) -> list[Encoded]:
    """Examples in units of several chunks."""
    rows = iter(texts(user, sum(sizes)))
    return [replace(next(rows), unit=unit) for unit, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_unit_moves_the_sum_by_no_more_than_the_bound(base: Base, texts: Texts, kind: str) -> None:
    clip, whole = 0.05, documents(texts, 3, [1, 3, 2, 1])
    guard = Guard(clip, keyed)
    everything = fit(base, {0: whole}, FULL, guard, kind)[0]
    for gone in range(4):
        rest = [e for e in whole if e.unit != gone]
        without = fit(base, {0: rest}, FULL, guard, kind)[0]
        total, part = ({n: v * len(x) for n, v in moved.items()} for moved, x in ((everything, whole), (without, rest)))
        assert norm(subtract(total, part)) <= clip * (1 + 1e-5)
    assert norm({n: v * len(whole) for n, v in everything.items()}) > clip  # several units together do move it further


def test_the_chunks_of_a_document_are_added_up_before_they_are_clipped(base: Base, texts: Texts) -> None:
    together, apart_ = documents(texts, 3, [6]), documents(texts, 3, [1] * 6)
    one, six = (fit(base, {0: x}, FULL, Guard(1e-3, keyed))[0] for x in (together, apart_))
    assert norm(one) == pytest.approx(1e-3 / 6, rel=1e-3)
    assert norm(six) > 1.5 * norm(one)
    loose = [fit(base, {0: x}, FULL, LOOSE)[0] for x in (together, apart_)]
    assert apart(*loose) < 1e-5


@pytest.mark.parametrize("tokens", [1, 30, 90, 10_000])
def test_neither_the_width_of_a_pass_nor_of_a_cohort_changes_a_result(base: Base, texts: Texts, tokens: int) -> None:
    users = {u: documents(texts, u, [1 + (u + i) % 3 for i in range(3 + u)]) for u in range(3)}
    local = replace(FULL, batch=4, epochs=2, lr=0.1)
    guard = Guard(0.5, keyed)
    wide, other = (fit(base, users, local, guard, "core", Engine(tokens_per_pass=t), noise=1.0) for t in (2048, tokens))
    assert max(apart(wide[u], other[u]) for u in users) < 1e-5
    alone = fit(base, {1: users[1]}, local, guard, "core", noise=1.0)
    assert apart(wide[1], alone[1]) < 1e-5


def test_another_users_data_change_no_bit_of_a_users_result(base: Base, texts: Texts) -> None:
    users = {u: texts(u, 4, length=6) for u in range(3)}
    guard, local = Guard(0.5, keyed), replace(FULL, epochs=2, lr=0.1)
    before, after = (fit(base, x, local, guard, noise=1.0) for x in (users, users | {0: texts(77, 4, length=6)}))
    assert apart(before[0], after[0]) > 1e-3
    assert all(torch.equal(before[u][n], after[u][n]) for u in (1, 2) for n in before[u])


def test_noise_has_the_scale_of_the_bound_and_is_each_users_own(base: Base, texts: Texts) -> None:
    users, guard = {u: texts(u, 4) for u in range(2)}, Guard(0.3, keyed)
    quiet, loud = (fit(base, users, FULL, guard, noise=z) for z in (0.0, 7.0))
    drawn = [torch.cat([v.flatten() for v in subtract(loud[u], quiet[u]).values()]) for u in users]
    expected = 7.0 * 0.3 / 4  # per number, of the mean over four examples
    ratio = float(drawn[0].std()) / expected
    assert 0.95 < ratio < 1.05  # so two thirds and three halves of it would be refused
    assert abs(float(drawn[0].mean())) < 4 * expected / len(drawn[0]) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 0.1


def test_a_step_without_units_is_a_step_of_noise(base: Base, texts: Texts) -> None:
    def silent(*key: object) -> Callable[[torch.Size], Tensor]:
        return (lambda shape: torch.full(shape, 9.0)) if key[-1] == "sample" else keyed(*key)

    users, local = {u: texts(u, 4) for u in range(2)}, replace(FULL, batch=1)
    nothing = fit(base, users, local, Guard(1.0, silent))
    assert all(norm(nothing[u]) == 0 for u in users)
    noise = fit(base, users, local, Guard(1.0, silent), noise=1.0)
    numbers = sum(v.numel() for v in noise[0].values())
    assert norm(noise[0]) == pytest.approx((4 * numbers) ** 0.5, rel=0.1)  # four steps, each over an expected batch of one


def test_units_are_drawn_by_coins_of_the_right_rate(texts: Texts) -> None:
    x = Learner({}, texts(0, 20), [], (0,), 1.0)
    counts = [len(drawn[0]) for epoch in range(100) for drawn in dpsgd.batches([x], 5, LOOSE, epoch)]
    assert len(counts) == 400
    assert sum(counts) / len(counts) == pytest.approx(5, abs=0.4)  # 20 coins of one in four
    assert min(counts) < 3 and max(counts) > 8  # and not five each time
    every = [u[0].unit for drawn in dpsgd.batches([x], 5, LOOSE, 0) for u in drawn[0]]
    assert len(set(every)) < len(every) or len(every) < 20  # epochs do not walk through the data


def test_what_is_booked_is_what_is_run(texts: Texts) -> None:
    assert budget.event(2.0, 20, 20, 3) == Event(2.0, 3)
    assert budget.event(2.0, 20, 6, 3) == Event(2.0, 12, 0.3, "poisson")
    x = Learner({}, texts(0, 20), [], (0,), 1.0)
    assert len(list(dpsgd.batches([x], 6, LOOSE, 0))) * 3 == budget.event(2.0, 20, 6, 3).steps


def test_a_unit_whose_gradient_is_not_finite_adds_nothing(base: Base, texts: Texts) -> None:
    base.model.get_input_embeddings().weight.data[1] = torch.inf  # a token that no other example has
    bad = Encoded(torch.tensor([5, 1, 7, 8]), 3, -1, 9)
    good = texts(0, 3)
    with_it, without = fit(base, {0: [*good, bad]}, FULL, LOOSE)[0], fit(base, {0: good}, FULL, LOOSE)[0]
    assert apart({n: v * 4 for n, v in with_it.items()}, {n: v * 3 for n, v in without.items()}) < 1e-4


def test_a_pass_never_parts_a_unit(base: Base, texts: Texts) -> None:
    tower = Tower(base, (layout("shared", LORA, base, 0),), Engine())
    batches = [dpsgd.units(documents(texts, u, sizes)) for u, sizes in enumerate([[3, 1], [2], []])]
    fillers = [texts(u, 1)[0] for u in range(3)]
    for part in unit_passes(batches, fillers, tower, 1, 10):
        each = len(part.examples) // (part.users * part.units)
        for first in range(0, len(part.examples), each):
            rows = range(first, first + each)
            assert len({part.examples[i].unit for i in rows if part.weight_N[i]}) <= 1
    assert sum(int(part.weight_N.sum()) for part in unit_passes(batches, fillers, tower, 1, 10)) == 6
