"""What each paper says of its aggregator, as an equation that holds."""

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from strategies import aggregators
from strategies.aggregators.fedrot import rotated
from strategies.aggregators.geometric_median import weiszfeld
from strategies.base import Aggregator, Release
from strategies.lora import Product, factored, pairs, plus, product_norm, svd
from strategies.tree import norm, subtract
from tests.strategies.given import (
    ALONE,
    MODULES,
    WEIGHTS,
    I,
    O,
    R,
    after,
    applied,
    assert_close,
    effect,
    ideal,
    release,
    releases,
    shared,
)  # fmt: skip

NAMES = [(f"{module}.lora_B.weight", f"{module}.lora_A.weight") for module in MODULES]
FEDIT = aggregators.build("fedit", {})
ROBUST = ("geometric_median", "krum", "median", "multi_krum", "norm_clip", "trimmed_mean")


def built(name: str, **options: float) -> Aggregator:
    """One by its name."""
    return aggregators.build(name, options)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------ products in factors
@pytest.mark.parametrize(("o", "r", "i"), [(9, 3, 6), (4, 7, 6), (9, 7, 5), (3, 8, 3), (1, 2, 1)])
def test_an_svd_by_way_of_the_triangles_is_that_of_the_product(o: int, r: int, i: int) -> None:
    b, a = randn(o, r), randn(r, i, seed=1)
    u, s, v = svd(Product(b, a))
    assert len(s) == min(o, r, i)
    torch.testing.assert_close(u * s @ v, b @ a)
    torch.testing.assert_close(u.T @ u, torch.eye(len(s)).double())
    torch.testing.assert_close(v @ v.T, torch.eye(len(s)).double())
    torch.testing.assert_close(s, torch.linalg.svdvals(b @ a)[: len(s)])
    assert bool((u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all())
    torch.testing.assert_close(product_norm(b, a), (b @ a).norm())


@pytest.mark.parametrize(("o", "i"), [(5, 8), (8, 5)])
def test_any_number_of_products_adds_up_exactly_in_factors_that_stay_narrow(o: int, i: int) -> None:
    each = [Product(randn(o, 2, seed=k), randn(2, i, seed=100 + k)) for k in range(40)]
    total = each[0]
    for one in each[1:]:
        total = plus(total, one)
        assert total.b_OR.shape[1] <= 2 * 5
    torch.testing.assert_close(total.b_OR @ total.a_RI, torch.stack([b @ a for b, a in each]).sum(0))


def test_a_product_of_fewer_ranks_than_its_place_has_leaves_zeros() -> None:
    b, a = factored(svd(Product(randn(2, 1), randn(1, 3))), torch.ones(2, 4), torch.ones(4, 3))
    torch.testing.assert_close(b @ a, (randn(2, 1) @ randn(1, 3)).float())
    assert not b[:, 1:].any() and not a[1:].any()


# ------------------------------------------------------------------ flexlora
def test_flexlora_is_the_nearest_product_of_the_rank() -> None:
    given = releases(FEDIT)
    found = applied(built("flexlora"), given)[1]
    for (b, a), want in zip(pairs(shared()), ideal(shared(), given).values(), strict=True):
        tail = torch.linalg.svdvals(want)[R:].square().sum()
        torch.testing.assert_close((want - found[b].double() @ found[a].double()).square().sum(), tail, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(found[a] @ found[a].T, torch.eye(R), atol=1e-5, rtol=0)
        assert tail > 0.1


def test_flexlora_and_hetlora_take_users_of_fewer_ranks() -> None:
    start, ends = shared(), {rank: shared(20 + rank) for rank in (1, 2, 3)}
    given, products, norms = [], {b: torch.zeros(O, I) for b, _ in NAMES}, {b: torch.zeros(()) for b, _ in NAMES}
    padded = {name: torch.zeros_like(start[name]) for pair in NAMES for name in pair}
    for rank, end in ends.items():
        update = {}
        for b, a in NAMES:
            update |= {b: (end[b] - start[b])[:, :rank] * rank, a: (end[a] - start[a])[:rank] * rank}
            product = end[b][:, :rank] @ end[a][:rank]
            products[b] += rank / 6 * product
            norms[b] += rank * product.norm()
            padded[b][:, :rank] += rank * product.norm() * end[b][:, :rank]
            padded[a][:rank] += rank * product.norm() * end[a][:rank]
        given.append(Release(update, float(rank)))
    flex, het = (applied(built(name), given)[1] for name in ("flexlora", "hetlora"))
    for b, a in NAMES:
        u, s, v = torch.linalg.svd(products[b], full_matrices=False)
        torch.testing.assert_close(flex[b] @ flex[a], u[:, :R] * s[:R] @ v[:R], atol=1e-4, rtol=1e-4)
        for name in (a, b):
            torch.testing.assert_close(het[name], padded[name] / norms[b], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------ hetlora, lora_fair
def test_hetlora_of_equal_norms_is_fedit_and_of_zero_products_as_well() -> None:
    start = {n: torch.zeros_like(v) for n, v in shared().items()}
    turns = [torch.linalg.qr(randn(R, R, seed=k)).Q.float() for k in range(3)]
    equal = [shared(3) | {a: turn @ shared(3)[a] for _, a in NAMES} | {b: shared(3)[b] @ turn.T for b, _ in NAMES} for turn in turns]
    for users in (equal, [u | {b: torch.zeros(O, R) for b, _ in NAMES} for u in equal]):
        given = [release(FEDIT, u, w) for u, w in zip(users, WEIGHTS, strict=True)]
        assert_close(applied(built("hetlora"), given, start)[1], applied(FEDIT, given, start)[1], 1e-5)


def test_hetlora_weighs_by_the_size_of_the_product() -> None:
    start = {n: torch.zeros_like(v) for n, v in shared().items()}
    large = {n: 10 * v for n, v in shared(1).items()}
    found = applied(built("hetlora"), [release(FEDIT, u, 1.0) for u in (shared(1), large)], start)[1]
    for _, a in NAMES:
        torch.testing.assert_close(found[a], shared(1)[a] * (1 + 100 * 10) / 101, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[ALONE[1]], shared(1)[ALONE[1]] * 5.5)


@pytest.mark.parametrize("ridge", [0.0, 0.01, 3.0])
def test_lora_fair_solves_its_normal_equations_and_is_no_further_than_fedit(ridge: float) -> None:
    given = releases(FEDIT)
    plain, found = applied(FEDIT, given)[1], applied(built("lora_fair", ridge=ridge), given)[1]
    for (b, a), want in zip(pairs(shared()), ideal(shared(), given).values(), strict=True):
        slope = (found[b] @ found[a] - want) @ found[a].double().T + ridge * (found[b] - plain[b])
        assert float(slope.abs().max()) < 1e-4
        assert torch.equal(found[a], plain[a])
        assert (found[b] @ found[a] - want).norm() < (plain[b] @ plain[a] - want).norm()


# ------------------------------------------------------------------ fedsvd, rolora, fedrot
def test_fedsvd_keeps_the_mean_product_and_makes_a_orthonormal() -> None:
    ffa, fedsvd = built("ffa"), built("fedsvd")
    want, found = (applied(x, releases(x))[1] for x in (ffa, fedsvd))
    assert_close(effect(found), effect(want), 1e-5)
    for b, a in NAMES:
        torch.testing.assert_close(found[a] @ found[a].T, torch.eye(R), atol=1e-6, rtol=0)
        gram = found[b].T @ found[b]
        torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-4, rtol=0)


def test_fedsvd_of_a_product_that_is_zero_leaves_directions_to_learn() -> None:
    start = shared() | {b: torch.zeros(O, R) for b, _ in NAMES}
    found = applied(built("fedsvd"), [Release({b: torch.zeros(O, R) for b, _ in NAMES}, 1.0)], start)[1]
    for b, a in NAMES:
        assert not found[b].any()
        torch.testing.assert_close(found[a] @ found[a].T, torch.eye(R), atol=1e-6, rtol=0)


def test_rolora_moves_b_then_a_and_the_other_factor_to_the_bit_not() -> None:
    rolora, state = built("rolora"), shared()
    for number in range(1, 5):
        _, found = rolora.apply({}, state, releases(rolora, round_=number))
        for b, a in NAMES:
            still, moved = (a, b) if number % 2 else (b, a)
            assert torch.equal(found[still], state[still]) and not torch.equal(found[moved], state[moved])
        state = found


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("by_a", [True, False])
def test_fedrot_keeps_products_and_norms_and_comes_no_further_from_what_was_received(strength: float, by_a: bool) -> None:
    received, update = shared(), shared(7)
    found = rotated(received, update, strength, by_a)
    for b, a in NAMES:
        own, turned = ((received[b] + x[b], received[a] + x[a]) for x in (update, found))
        torch.testing.assert_close(turned[0] @ turned[1], own[0] @ own[1], atol=1e-4, rtol=1e-4)
        for x, y in zip(own, turned, strict=True):
            torch.testing.assert_close(x.norm(), y.norm(), atol=1e-5, rtol=1e-5)
        name = a if by_a else b
        assert found[name].norm() <= update[name].norm() * (1 + 1e-6)
        assert (found[name].norm() < 0.99 * update[name].norm()) == (strength > 0)
    assert all(torch.equal(found[name], update[name]) for name in ALONE)


def test_fedrot_without_strength_or_in_its_first_round_is_fedit() -> None:
    for aggregator, number in ((built("fedrot", strength=0.0), 2), (built("fedrot"), 1)):
        given = releases(aggregator, round_=number)
        assert_close(applied(aggregator, given)[1], applied(FEDIT, releases(FEDIT))[1], 1e-5)


@pytest.mark.parametrize("round_", [2, 3])
def test_fedrot_undoes_a_rotation_that_a_user_came_by(round_: int) -> None:
    start, fedrot = shared(), built("fedrot", strength=1.0)
    turn = torch.linalg.qr(randn(R, R)).Q.float()
    turn = turn * torch.linalg.det(turn).sign()  # rank is odd: det 1
    moved = {b: start[b] @ turn - start[b] for b, _ in NAMES} | {a: turn.T @ start[a] - start[a] for _, a in NAMES}
    still = {n: torch.zeros_like(v) for n, v in moved.items()}
    found = applied(fedrot, [release(fedrot, user, 1.0, round_) for user in (moved, still)])[1]
    assert_close(found, start, 1e-5)
    assert not torch.allclose(applied(FEDIT, [release(FEDIT, moved, 1.0)])[1][NAMES[0][0]], start[NAMES[0][0]], atol=0.1)


# ------------------------------------------------------------------ ties, task arithmetic
def test_ties_trims_elects_and_averages_those_that_agree() -> None:
    start = {NAMES[0][0]: torch.zeros(2, 2), NAMES[0][1]: torch.eye(2)}  # so that the product is B
    users = [[[4.0, 1.0], [-3.0, 0.1]], [[2.0, -6.0], [5.0, 0.2]]]
    given = [Release({NAMES[0][0]: torch.tensor(u)}, 1.0) for u in users]
    for density, want in ((1.0, [[3.0, -6.0], [5.0, 0.15]]), (0.5, [[4.0, -6.0], [5.0, 0.0]])):
        found = applied(built("ties", density=density), given, start)[1]
        torch.testing.assert_close(effect(found)[NAMES[0][0]], torch.tensor(want), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.5, -1.0])
def test_task_arithmetic_adds_users_vectors_up_and_one_over_their_number_is_fedit(scale: float) -> None:
    given = releases(FEDIT, (3.0, 3.0, 3.0, 3.0))
    found = applied(built("task_arithmetic", scale=scale), given)[1]
    want = {n: v + scale / 4 * torch.stack([shared(10 + k)[n] for k in range(4)]).sum(0) for n, v in shared().items()}
    assert_close(found, want, 1e-5)
    assert (scale == 1) == torch.allclose(found[ALONE[0]], applied(FEDIT, given)[1][ALONE[0]], atol=1e-4)


# ------------------------------------------------------------------ server optimizers
SECOND = {
    "fedadam": lambda v, d: 0.99 * v + 0.01 * d * d,
    "fedyogi": lambda v, d: v - 0.01 * d * d * torch.sign(v - d * d),
    "fedadagrad": lambda v, d: v + d * d,
}


@pytest.mark.parametrize("name", SECOND)
def test_a_server_optimizer_moves_by_its_moments_of_the_mean_update(name: str) -> None:
    aggregator, state, tensor = built(name, lr=0.05, tau=1e-3), shared(), ALONE[0]
    memory, want = aggregator.init(state), state[tensor]
    m, v, beta = torch.zeros(R, R), torch.zeros(R, R), 0.0 if name == "fedadagrad" else 0.9
    for seed in range(4):
        memory, state = aggregator.apply(memory, state, [release(aggregator, shared(seed), 2.0)])
        d = shared(seed)[tensor]
        m, v = beta * m + (1 - beta) * d, SECOND[name](v, d)
        want = want + 0.05 * m / (v.sqrt() + 1e-3)
        torch.testing.assert_close(state[tensor], want, atol=1e-5, rtol=1e-5)


def test_fedavgm_carries_its_momentum_on() -> None:
    aggregator = built("fedavgm", momentum=0.5, lr=2.0)
    start = {n: torch.zeros_like(v) for n, v in shared().items()}
    update = {n: torch.ones_like(v) for n, v in start.items()}
    memory, first = aggregator.apply(aggregator.init(start), start, [release(aggregator, update, 3.0)])
    _, second = aggregator.apply(memory, first, [release(aggregator, update, 3.0)])
    assert all(torch.equal(v, torch.full_like(v, 2.0)) for v in first.values())
    assert all(torch.equal(v, torch.full_like(v, 2.0 + 2.0 * 1.5)) for v in second.values())


def test_fedavgm_without_momentum_is_fedit() -> None:
    assert_close(applied(built("fedavgm", momentum=0.0), releases(FEDIT))[1], applied(FEDIT, releases(FEDIT))[1])


# ------------------------------------------------------------------ robust
def crowd(outlier: float = 0.0, count: int = 7) -> list[Release]:
    """Users around one update; one of them far out, if asked for."""
    users = [{n: v + 0.1 * shared(30 + k)[n] for n, v in shared(3).items()} for k in range(count)]
    users += [{n: outlier * v for n, v in shared(99).items()}] if outlier else []
    return [release(FEDIT, user, 2.0) for user in users]


@pytest.mark.parametrize("name", ROBUST)
def test_one_user_however_far_out_moves_a_robust_aggregate_only_so_far(name: str) -> None:
    aggregator = built(name, **({"share": 0.2} if name == "trimmed_mean" else {}))
    honest = applied(aggregator, crowd())[1]
    gaps = [norm(subtract(applied(aggregator, crowd(size))[1], honest)) for size in (1e2, 1e4, 1e8)]
    assert max(gaps) < (4.0 if name == "norm_clip" else 1.5)
    assert gaps[2] == pytest.approx(gaps[1], rel=1e-2, abs=1e-2)
    assert norm(subtract(applied(FEDIT, crowd(1e4))[1], honest)) > 1e3


@pytest.mark.parametrize("name", ROBUST)
def test_a_robust_aggregate_counts_users_and_not_what_they_weigh(name: str) -> None:
    one, two = crowd()[:5], [Release({n: v * 50 for n, v in crowd()[0].update.items()}, 100.0), *crowd()[1:5]]
    assert_close(applied(built(name), one)[1], applied(built(name), two)[1], 1e-5)


def test_a_trimmed_mean_that_trims_nothing_is_the_mean_and_one_that_trims_all_the_median() -> None:
    given = releases(FEDIT, (1.0,) * 5)
    assert_close(applied(built("trimmed_mean", share=0.0), given)[1], applied(FEDIT, given)[1], 1e-5)
    for users in (given, given[:4]):
        ends = {n: torch.stack([after(shared(), r)[n] for r in users]) for n in shared()}
        want = {n: v.quantile(0.5, dim=0).float() for n, v in ends.items()}
        assert_close(applied(built("median"), users)[1], want, 1e-5)
    middle = torch.stack([after(shared(), r)[ALONE[0]] for r in given]).sort(0).values[1:4].mean(0).float()
    torch.testing.assert_close(applied(built("trimmed_mean", share=0.2), given)[1][ALONE[0]], middle, atol=1e-5, rtol=1e-5)


def test_krum_returns_the_update_that_the_paper_would() -> None:
    users = [after(shared(), r) for r in crowd(50.0)]
    flat = torch.stack([torch.cat([v.flatten() for v in u.values()]) for u in users])
    scores = torch.cdist(flat, flat).square().sort(1).values[:, 1 : 1 + len(users) - 1 - 2].sum(1)  # f = 1 of 8
    order = scores.argsort().tolist()
    found = applied(built("krum"), crowd(50.0))[1]
    assert_close(found, {n: v.float() for n, v in users[order[0]].items()}, 1e-5)
    best = {n: torch.stack([users[k][n] for k in order[:7]]).mean(0).float() for n in shared()}
    assert_close(applied(built("multi_krum"), crowd(50.0))[1], best, 1e-5)
    assert order[-1] == 7


def test_a_geometric_median_is_where_the_directions_to_all_users_cancel() -> None:
    points = randn(6, 4)
    z = weiszfeld(points @ points.T) @ points
    away = (points - z) / (points - z).norm(dim=1, keepdim=True)
    assert float(away.sum(0).norm()) < 1e-6
    far = torch.cat([randn(3, 4) + 5, randn(4, 4)[:1].expand(4, 4)])  # more than half in one place
    torch.testing.assert_close(weiszfeld(far @ far.T) @ far, far[-1], atol=1e-4, rtol=0)


def test_norm_clipping_shortens_whoever_is_longer_than_the_bound() -> None:
    start, update = shared(), shared(3)
    long = norm(update)
    for bound, want in ((long / 4, 0.25), (2 * long, 1.0), (0.0, 1.0)):
        found = applied(built("norm_clip", bound=bound), [release(FEDIT, update, 3.0)])[1]
        assert norm(subtract(found, start)) == pytest.approx(want * long, rel=1e-5)
    double = {n: 2 * v for n, v in update.items()}
    found = applied(built("norm_clip"), [release(FEDIT, u, 1.0) for u in (update, update, double)])[1]
    assert_close(found, applied(FEDIT, [release(FEDIT, update, 1.0)])[1], 1e-5)


@pytest.mark.parametrize(("name", "option", "value"), [("ties", "density", 0.0), ("krum", "share", 0.7), ("fedrot", "strength", 1.5)])
def test_an_option_outside_of_its_meaning_is_refused(name: str, option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"aggregator_options.{option} must be between"):
        built(name, **{option: value})
