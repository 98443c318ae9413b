"""Users trained side by side come out as if each had been trained alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.adapters.layout import Layout, layout
from client.base import Base
from client.data.types import Encoded
from client.flat import Flat, RowOptimizer
from client.score import mean_losses
from client.tower import Tower
from client.train import Learner, Trainer, Work, together
from configs.scenario import Adapter, Engine, Local
from strategies.tree import State

Texts = Callable[..., list[Encoded]]
SGD = Local(optimizer="sgd", lr=0.1, batch=2, epochs=2)
ADAMW = Local(optimizer="adamw", lr=1e-2, batch=2, epochs=2)
LORA = Adapter(rank=3, layers=2)
KINDS = {
    "lora": LORA,
    "core": Adapter(kind="core", rank=3, layers=2),
    "ia3": Adapter(kind="ia3", layers=2),
    "prompt": Adapter(kind="prompt", tokens=3),
    "late_prompt": Adapter(kind="late_prompt", tokens=3, layers=2),
}
CASES = [*((kind, SGD) for kind in KINDS), ("lora", ADAMW)]


def loud(found: Layout, user: int) -> State:
    """One user's state away from the start, so that every factor has a gradient."""
    draw = torch.Generator().manual_seed(1000 + user)
    return {f"{found.block}/{n}": v + 0.1 * torch.randn(v.shape, generator=draw) for n, v in found.start.items()}


def fit(base: Base, users: Mapping[int, Sequence[Encoded]], local: Local, kind: str = "lora", engine: Engine = Engine(),  # noqa: B008
        label_ids: tuple[int, ...] = ()) -> tuple[dict[int, State], Work]:  # fmt: skip
    """Train users in one call and give each one's tensors."""
    blocks = (layout("shared", LORA, base, 0), layout("private", KINDS[kind], base, 0))
    tower = Tower(base, blocks, engine)
    try:
        learners = [Learner(loud(blocks[0], 0) | loud(blocks[1], u), x, [], (0, 1, u, "both")) for u, x in users.items()]
        found, work = Trainer(tower, blocks, engine, label_ids).train(learners, lambda _: True, local)
        return dict(zip(users, found, strict=True)), work
    finally:
        tower.close()


def apart(a: State, b: State) -> float:
    """The largest difference of two states."""
    return max(float((a[n] - b[n]).abs().max()) for n in a)


@pytest.mark.parametrize(("kind", "local"), CASES)
def test_a_cohort_equals_one_user_at_a_time(base: Base, texts: Texts, kind: str, local: Local) -> None:
    users = {u: texts(u, 1 + 2 * u) for u in range(3)}
    side_by_side, _ = fit(base, users, local, kind)
    for user, examples in users.items():
        alone, _ = fit(base, {user: examples}, local, kind)
        if local is SGD:
            assert apart(side_by_side[user], alone[user]) < 1e-6
        else:  # Adam divides by |g| + 1e-8: where a slope is near zero its rounding decides the sign
            assert apart(side_by_side[user], alone[user]) < 0.1 * local.lr


@pytest.mark.parametrize("tokens", [1, 30, 90, 10_000])
def test_neither_the_width_of_a_cohort_nor_micro_passes_change_a_result(base: Base, texts: Texts, tokens: int) -> None:
    users = {u: texts(u, 1 + 2 * u) for u in range(3)}
    wide, _ = fit(base, users, SGD)
    other, _ = fit(base, users, SGD, engine=Engine(tokens_per_pass=tokens))
    assert max(apart(wide[u], other[u]) for u in users) < 1e-6


def test_a_bound_on_memory_makes_passes_smaller_and_changes_no_result(base: Base, texts: Texts) -> None:
    users = {u: texts(u, 1 + 2 * u) for u in range(3)}
    wide, _ = fit(base, users, SGD)
    narrow, _ = fit(base, users, SGD, engine=Engine(memory_mb=1))
    assert max(apart(wide[u], narrow[u]) for u in users) < 1e-6


def test_checkpointing_changes_no_result(base: Base, texts: Texts) -> None:
    users = {u: texts(u, 3) for u in range(2)}
    plain, _ = fit(base, users, SGD)
    again, _ = fit(base, users, SGD, engine=Engine(checkpointing=True))
    assert max(apart(plain[u], again[u]) for u in users) < 1e-6


@pytest.mark.parametrize(("kind", "local"), CASES)
def test_another_users_data_change_no_bit_of_a_users_result(base: Base, texts: Texts, kind: str, local: Local) -> None:
    users = {u: texts(u, 4, length=6) for u in range(3)}
    before, _ = fit(base, users, local, kind)
    after, _ = fit(base, users | {0: texts(77, 4, length=6)}, local, kind)
    assert apart(before[0], after[0]) > 1e-3
    for user in (1, 2):
        assert all(torch.equal(before[user][n], after[user][n]) for n in before[user])


def test_whoever_has_finished_does_not_move_while_others_go_on(base: Base, texts: Texts) -> None:
    few = texts(1, 2, length=6)
    once = replace(ADAMW, epochs=1)
    short, _ = fit(base, {0: texts(0, 2, length=6), 1: few}, once)
    long, work = fit(base, {0: texts(0, 8, length=6), 1: few}, once)
    assert work.steps == 4 + 1
    assert all(torch.equal(short[1][n], long[1][n]) for n in short[1])


def test_a_step_leaves_inactive_rows_and_their_moments_bitwise() -> None:
    flat = Flat({"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))})
    optimizer = RowOptimizer(flat, Local(optimizer="adamw", lr=0.1, weight_decay=0.5), [1, 1, 1])
    flat.grad_KP.fill_(1.0)
    optimizer.step(range(3))
    theta = flat.theta_KP.clone()
    moments = optimizer.torch.state[optimizer.rows[2]]["exp_avg"].clone()
    optimizer.step([0, 1])
    assert torch.equal(flat.theta_KP[2], theta[2])
    assert torch.equal(optimizer.torch.state[optimizer.rows[2]]["exp_avg"], moments)
    assert not torch.equal(flat.theta_KP[:2], theta[:2])


def test_a_user_without_examples_stays_at_the_start(base: Base, texts: Texts) -> None:
    found, work = fit(base, {0: texts(0, 3), 1: []}, SGD)
    blocks = (layout("shared", LORA, base, 0), layout("private", LORA, base, 0))
    start = loud(blocks[0], 0) | loud(blocks[1], 1)
    assert all(torch.equal(found[1][n], start[n]) for n in start)
    assert work.examples == 2 * 3


def test_work_counts_real_tokens_examples_and_steps_only(base: Base, texts: Texts) -> None:
    users = {u: texts(u, 1 + 2 * u) for u in range(3)}
    _, work = fit(base, users, replace(SGD, epochs=1))
    assert work.examples == 1 + 3 + 5
    assert work.tokens == sum(len(e.ids) for x in users.values() for e in x)
    assert work.steps == 1 + 2 + 3


@cache
def common_base() -> Base:
    """One model for all cases of the test below; a tower gives it back as it was."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                                      num_attention_heads=2, num_key_value_heads=1, initializer_range=0.1)  # fmt: skip
    return Base(transformers.LlamaForCausalLM(config).requires_grad_(False).eval(), None, "tiny")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    batch=st.integers(1, 4),
    tokens=st.integers(1, 120),
    task=st.sampled_from(["text", "answer", "choice"]),
)
def test_any_raggedness_and_any_budget_give_what_one_at_a_time_gives(
    texts: Texts, counts: list[int], batch: int, tokens: int, task: str
) -> None:
    labels = (4, 5) if task == "choice" else ()
    local = replace(SGD, batch=batch, epochs=1)
    users: dict[int, Sequence[Encoded]] = {u: texts(u, n, task=task) for u, n in enumerate(counts)}
    fused, _ = fit(common_base(), users, local, engine=Engine(tokens_per_pass=tokens), label_ids=labels)
    for user, examples in users.items():
        alone, _ = fit(common_base(), {user: examples}, local, label_ids=labels)
        assert apart(fused[user], alone[user]) < 1e-6


# ------------------------------------------------------------------ early stopping and decay
def validated(base: Base, texts: Texts, local: Local) -> tuple[list[State], list[State], torch.Tensor, torch.Tensor]:
    """Train three users with a validation split: their starts, their ends, and the validation loss at both."""
    block = layout("private", LORA, base, 0)
    tower = Tower(base, (block,), Engine())
    try:
        held = [texts(u + 50, 2) for u in range(3)]
        starts = [loud(block, u) for u in range(3)]
        learners = [Learner(s, texts(u, 5), held[u], (0, 1, u, "private")) for u, s in enumerate(starts)]
        trainer = Trainer(tower, (block,), Engine())
        ends, _ = trainer.train(learners, lambda _: True, local)
        losses = [mean_losses(tower, trainer.blocks(together(s)), held, Engine(), ()) for s in (starts, ends)]
        return starts, ends, losses[0], losses[1]
    finally:
        tower.close()


def test_early_stopping_returns_each_users_best_epoch(base: Base, texts: Texts) -> None:
    local = Local(optimizer="sgd", lr=1.0, batch=2, max_norm=0.0, epochs=4)
    by_epoch = [validated(base, texts, replace(local, epochs=n)) for n in range(5)]
    losses_EK = torch.stack([found[3] for found in by_epoch])
    _, ends, _, losses_K = validated(base, texts, replace(local, early_stopping=True))
    torch.testing.assert_close(losses_K, losses_EK.min(0).values, atol=1e-6, rtol=0)
    assert len(set(losses_EK.argmin(0).tolist())) > 1, "the users should differ in their best epoch"
    for user, epoch in enumerate(losses_EK.argmin(0).tolist()):
        assert apart(ends[user], by_epoch[epoch][1][user]) < 1e-6


@pytest.mark.parametrize("lr", [30.0, 1e20, 1e38])
def test_early_stopping_never_returns_what_is_worse_than_the_start_even_where_training_diverges(
    base: Base, texts: Texts, lr: float
) -> None:
    starts, ends, before, after = validated(base, texts, Local(optimizer="sgd", lr=lr, max_norm=0.0, epochs=2, early_stopping=True))
    assert bool((after <= before + 1e-6).all())
    assert all(bool(v.isfinite().all()) for end in ends for v in end.values())
    if lr > 1e3:
        assert all(torch.equal(s[n], e[n]) for s, e in zip(starts, ends, strict=True) for n in s)


def test_without_a_validation_split_early_stopping_keeps_the_last_epoch(base: Base, texts: Texts) -> None:
    users = {0: texts(0, 3)}
    last, _ = fit(base, users, SGD)
    kept, _ = fit(base, users, replace(SGD, early_stopping=True))
    assert all(torch.equal(last[0][n], kept[0][n]) for n in last[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_pulls_towards_the_start_and_not_towards_zero(optimizer: str) -> None:
    start = torch.full((2, 3), 5.0)
    flat = Flat({"x": start.clone()})
    pulled = RowOptimizer(flat, Local(optimizer=optimizer, lr=0.1, weight_decay=2.0, max_norm=0.0), [1, 1])  # type: ignore[arg-type]
    flat.theta_KP += 1.0
    pulled.step([0])
    torch.testing.assert_close(flat.theta_KP, torch.tensor([[5.8] * 3, [6.0] * 3]))
    for _ in range(100):
        flat.grad_KP.zero_()
        pulled.step([0, 1])
    torch.testing.assert_close(flat.theta_KP, start)


def test_with_sgd_a_prior_ends_at_the_maximum_a_posteriori_whatever_a_users_number_of_examples() -> None:
    counts, target, prior = [1, 5, 50], 3.0, 5.0
    flat = Flat({"x": torch.zeros(3, 1)})
    optimizer = RowOptimizer(flat, Local(optimizer="sgd", lr=0.1, momentum=0.5, prior=prior, max_norm=0.0), counts)
    for _ in range(300):
        flat.grad_KP.copy_(flat.theta_KP - target)  # of the mean loss (x - target)^2 / 2 over n examples
        optimizer.step(range(3))
    torch.testing.assert_close(flat.theta_KP[:, 0], torch.tensor([n * target / (n + prior) for n in counts]))


def test_a_prior_shortens_a_step_by_the_curvature_that_it_adds() -> None:
    flat = Flat({"x": torch.zeros(2, 1)})
    flat.grad_KP.fill_(1.0)
    RowOptimizer(flat, Local(optimizer="sgd", lr=0.1, prior=6.0, max_norm=0.0), [2, 12]).step([0, 1])
    torch.testing.assert_close(flat.theta_KP[:, 0], torch.tensor([-0.1 / 4, -0.1 / 1.5]))


def test_a_gradient_is_clipped_user_by_user() -> None:
    flat = Flat({"x": torch.zeros(2, 2), "y": torch.zeros(2, 1)})
    flat.grad_KP.copy_(torch.tensor([[3.0, 0.0, 4.0], [0.3, 0.0, 0.4]]))
    RowOptimizer(flat, Local(optimizer="sgd", lr=1.0), [1, 1]).step([0, 1])
    torch.testing.assert_close(flat.theta_KP, -torch.tensor([[0.6, 0.0, 0.8], [0.3, 0.0, 0.4]]))


def test_a_base_in_bfloat16_trains_float32_adapters_to_nearly_the_same(texts: Texts, base: Base) -> None:
    users = {u: texts(u, 4) for u in range(2)}
    exact, _ = fit(base, users, SGD)
    base.model.to(torch.bfloat16)
    rough, _ = fit(base, users, SGD)
    for user in users:
        start: Any = fit(base, {user: users[user]}, replace(SGD, epochs=0))[0][user]
        moved = [torch.cat([(x[user][n] - start[n]).flatten() for n in start]) for x in (exact, rough)]
        assert all(v.dtype == torch.float32 for v in rough[user].values())
        assert float(torch.nn.functional.cosine_similarity(*moved, dim=0)) > 0.98
