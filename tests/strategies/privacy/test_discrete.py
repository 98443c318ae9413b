"""What a user sends into a secure sum stays within the norm that is accounted for, cannot wrap, and carries the promised noise."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from configs.errors import InputError
from strategies.privacy import discrete
from strategies.privacy.discrete import Grid, entropy, event, fit, gaussian, keyed, noised, quantize, restore
from strategies.tree import State, generator


def update(size: int, seed: int, std: float = 1e-3) -> State:
    """A user's update in two tensors, with entries of LoRA's scale."""
    x_D = torch.randn(size, generator=generator(seed)) * std
    return {"b": x_D[: size // 4].reshape(2, -1), "a": x_D[size // 4 :]}


def flat(state: State) -> Tensor:
    """The numbers of an update in the order of names."""
    return torch.cat([state[name].flatten() for name in sorted(state)]).double()


# ------------------------------------------------------------------ fixed point
@pytest.mark.parametrize("users", [10, 100, 1000])
def test_the_mean_of_updates_at_loras_scale_is_right_to_one_percent(users: int) -> None:
    given = [update(2000, seed) for seed in range(users)]
    bound = max(float(flat(u).norm()) for u in given)
    grid = fit(bound, 2000, users)
    total_D = sum(quantize(u, grid, keyed(generator(i))) for i, u in enumerate(given))
    found = restore(torch.as_tensor(total_D), grid, given[0])
    want_D = torch.stack([flat(u) for u in given]).sum(0)
    assert {n: (v.shape, v.dtype) for n, v in found.items()} == {n: (v.shape, v.dtype) for n, v in given[0].items()}
    assert float((flat(found) - want_D).norm() / want_D.norm()) <= 0.01


def test_rounding_is_to_a_neighbour_and_has_no_bias() -> None:
    x_D = torch.tensor([0.25, -0.75, 3.0, 100.5])
    grid = Grid(bound=200.0, size=4, users=1, modulus=2**32)
    draws_ND = torch.stack([quantize({"x": x_D}, grid, keyed(generator(i))) for i in range(4000)])
    assert set(draws_ND[:, 0].tolist()) == {0, 1}
    assert set(draws_ND[:, 1].tolist()) == {-1, 0}
    assert set(draws_ND[:, 2].tolist()) == {3}
    assert set(draws_ND[:, 3].tolist()) == {100, 101}
    torch.testing.assert_close(draws_ND.double().mean(0), x_D.double(), atol=4 * 0.5 / math.sqrt(4000), rtol=0)


@pytest.mark.parametrize(("bound", "size"), [(0.5, 400), (3.0, 400), (40.0, 400), (1.0, 1), (1e4, 400)])
def test_a_rounded_update_never_exceeds_the_norm_that_is_accounted_for(bound: float, size: int) -> None:
    grid = Grid(bound, size, users=1, modulus=2**32)
    for seed in range(30):
        x_D = torch.rand(size, generator=generator(seed)) * 10 ** (seed % 5 - 1)
        assert int(quantize({"x": x_D}, grid, keyed(generator(seed, "bits"))).square().sum()) <= grid.reach


def test_a_rounding_beyond_the_norm_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(bound=20.0, size=400, users=1, modulus=2**32)
    x_D = torch.full((400,), 0.5)
    inner, tries = discrete._round, []

    def first_up(scaled_D: Tensor, bits: discrete.Bits) -> Tensor:
        tries.append(1)
        return torch.full_like(scaled_D, 2.0).long() if len(tries) == 1 else inner(scaled_D, bits)

    monkeypatch.setattr(discrete, "_round", first_up)
    assert int(quantize({"x": x_D}, grid).square().sum()) <= grid.reach < 1600
    assert len(tries) == 2


def test_the_norm_after_rounding_is_the_papers() -> None:
    grid = Grid(bound=30.0, size=100, users=1, modulus=2**32, step=0.5)
    want = 60**2 + 25 + math.sqrt(2 * math.log(1e9)) * (60 + 5)
    assert grid.reach == math.floor(want) < 70**2
    assert Grid(bound=1.0, size=1, users=1, modulus=2**32).reach == 4, "the worst case, where that is less"


def test_a_larger_update_is_scaled_down_to_the_bound() -> None:
    given, grid = update(2000, 0), fit(1e-3, 2000, 10)
    found = flat(restore(quantize(given, grid), grid, given))
    torch.testing.assert_close(found, flat(given) / flat(given).norm() * 1e-3, atol=float(grid.step), rtol=0)


def test_a_vector_that_is_none_is_refused() -> None:
    grid = fit(1.0, 4, 2)
    for x_D, said in (
        (torch.ones(5), "5 numbers"),
        (torch.tensor([1.0, math.nan, 0, 0]), "finite"),
        (torch.full((4,), math.inf), "finite"),
    ):
        with pytest.raises(InputError, match=said):
            quantize({"x": x_D}, grid)


# ------------------------------------------------------------------ no sum wraps
@pytest.mark.parametrize(("noise", "honest"), [(0.0, 0), (1.0, 7), (4.0, 1)])
def test_the_largest_sum_that_users_can_send_comes_back_as_it_is(noise: float, honest: int) -> None:
    grid = fit(0.3, 50, 10, noise, honest)
    top_D = torch.full((50,), grid.room)
    for sign in (1, -1):
        total_D = torch.remainder(sign * top_D * grid.users, grid.modulus)  # as a secure sum gives it
        torch.testing.assert_close(restore(total_D, grid, {"x": top_D})["x"].double(), sign * top_D.double() * grid.users * grid.step)
    assert math.isqrt(grid.reach) + 9 * grid.noise < grid.room


def test_a_number_without_room_is_an_error_and_does_not_wrap() -> None:
    grid = fit(1.0, 3, 4)
    with pytest.raises(OverflowError, match="room"):
        noised(torch.tensor([0, grid.room + 1, 0]), grid)


def test_the_grid_is_the_finest_one_that_has_room() -> None:
    for noise, honest in ((0.0, 0), (1.0, 60)):
        grid = fit(0.316, 100_000, 100, noise, honest)
        finer = Grid(grid.bound, grid.size, grid.users, grid.modulus, grid.step / 2, 2 * grid.noise)
        assert math.sqrt(finer.reach) + discrete._tail(finer) > finer.room


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modulus": 2**16}, "modulus of 65536 is too small"),
        ({"users": 10**9}, "too small"),
        ({"noise": 1e6, "honest": 1}, "too small"),
        ({"noise": 1.0}, "honest must be between 1 and the 100 users"),
        ({"noise": 1.0, "honest": 101}, "honest"),
        ({"bound": 0.0}, "bound 0.0"),
        ({"bound": math.nan}, "bound nan"),
        ({"noise": -1.0}, "noise -1.0"),
        ({"modulus": 2**40}, "modulus"),
    ],
)
def test_what_no_grid_can_hold_is_one_sentence(change: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit(**({"bound": 0.3, "size": 100_000, "users": 100} | change))  # type: ignore[arg-type] - whole numbers among floats, as one mapping


# ------------------------------------------------------------------ the discrete Gaussian
@pytest.mark.parametrize("sigma", [1, 3])
def test_draws_have_the_exact_probabilities_of_the_discrete_gaussian(sigma: int) -> None:
    found = np.asarray(gaussian(100_000, sigma, keyed(generator(sigma))))
    inner = np.arange(-3 * sigma, 3 * sigma + 1)
    weights = np.exp(-(np.arange(-60, 61) ** 2) / (2 * sigma**2))
    pmf = np.exp(-(inner**2) / (2 * sigma**2)) / weights.sum()
    counts = np.array([*((found == y).sum() for y in inner), (np.abs(found) > 3 * sigma).sum()])
    assert stats.chisquare(counts, np.append(pmf, 1 - pmf.sum()) * len(found)).pvalue > 1e-3
    if sigma == 1:
        assert pmf[3] == pytest.approx(0.398942, abs=1e-6), "P(0) = 1 / theta_3"


@pytest.mark.parametrize("sigma", [1000, 2**24])
def test_wide_draws_are_gaussian_and_not_those_of_another_width(sigma: int) -> None:
    found = np.asarray(gaussian(20_000, sigma, keyed(generator("wide", sigma))).double())
    assert stats.kstest(found, stats.norm(scale=sigma).cdf).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(found, stats.norm(scale=wrong * sigma).cdf).pvalue < 1e-9


def test_the_coin_of_exp_is_fair_to_its_formula() -> None:
    for part, whole in ((0, 5), (1, 4), (3, 4), (1, 1)):
        heads = discrete._coin(torch.full((40_000,), part), whole, keyed(generator(part, whole))).double().mean()
        assert float(heads) == pytest.approx(math.exp(-part / whole), abs=0.01)


def test_a_uniform_draw_has_no_bias_of_a_remainder() -> None:
    end = 3 * 2**61  # a remainder of 63 bits would be below 2**61 twice as often
    found = discrete._below(end, 30_000, keyed(generator("below")))
    assert float((found < 2**61).double().mean()) == pytest.approx(1 / 3, abs=0.015)
    assert int(found.max()) < end


def test_noise_is_the_keys_or_nobodys() -> None:
    assert torch.equal(gaussian(50, 9, keyed(generator(1))), gaussian(50, 9, keyed(generator(1))))
    assert not torch.equal(gaussian(50, 9), gaussian(50, 9))
    assert int(entropy(1000).min()) >= 0
    assert float((entropy(10_000).double() / 2**63).mean()) == pytest.approx(0.5, abs=0.02)
    for sigma in (0, 2**24 + 1, 0.5):
        with pytest.raises(InputError, match="whole number"):
            gaussian(3, sigma)  # type: ignore[arg-type] - 0.5 is what is to be refused


# ------------------------------------------------------------------ the sum
def sum_of(grid: Grid, users: int) -> np.ndarray:
    """Zero updates of so many users, summed: nothing but noise, in real units."""
    zero = {"x": torch.zeros(grid.size)}
    parts = (noised(quantize(zero, grid, keyed(generator(i))), grid, keyed(generator(i, "noise"))) for i in range(users))
    total_D = torch.stack(list(parts)).sum(0)
    return np.asarray(restore(torch.remainder(total_D, grid.modulus), grid, zero)["x"].double())


def test_the_decoded_sum_carries_the_noise_that_was_asked_for() -> None:
    grid = fit(0.5, 4000, 12, noise=1.5, honest=12)
    found, std = sum_of(grid, 12), 1.5 * 0.5
    assert stats.kstest(found, stats.norm(scale=std).cdf).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(found, stats.norm(scale=wrong * std).cdf).pvalue < 1e-9


@pytest.mark.parametrize("dropped", [0, 2, 4])
def test_with_dropped_users_the_noise_is_at_least_the_accounted_one(dropped: int) -> None:
    grid = fit(0.5, 4000, 12, noise=1.5, honest=8)
    variance, accounted = sum_of(grid, 12 - dropped).var(), (event(grid).noise * math.sqrt(grid.reach) * grid.step) ** 2
    assert variance >= accounted * (1 - 4 * math.sqrt(2 / 4000))
    assert variance / accounted == pytest.approx((12 - dropped) / 8, rel=0.1)


# ------------------------------------------------------------------ accounting
def test_the_event_is_the_theorems_worked_out_by_hand() -> None:
    grid = Grid(bound=4.0, size=9, users=5, modulus=2**32, noise=1, honest=3)
    s2 = min(16 + 9 / 4 + math.sqrt(2 * math.log(1e9)) * (4 + 1.5), 49)
    tau = 10 * (math.exp(-(math.pi**2)) + math.exp(-4 * math.pi**2 / 3))
    e = min(math.sqrt(math.floor(s2) / 3 + 2 * tau * 9), math.sqrt(math.floor(s2) / 3) + tau * 3)
    assert event(grid).noise == pytest.approx(1 / e)
    assert event(grid).kind == "concentrated"
    assert (event(grid).rate, event(grid).steps) == (1.0, 1)


def exact_divergence(sigma: int, users: int, shift: int, alpha: float) -> float:
    """Rényi divergence of order alpha between the sum of ``users`` discrete Gaussians and itself moved by ``shift``."""
    y = np.arange(-40 * sigma, 40 * sigma + 1)
    one = np.exp(-(y**2) / (2 * sigma**2))
    total = one / one.sum()
    for _ in range(users - 1):
        total = np.convolve(total, one / one.sum())
    wide = 12 * math.ceil(sigma * math.sqrt(users)) + shift
    centre = len(total) // 2
    p, q = total[centre - wide : centre + wide + 1], total[centre - wide + shift : centre + wide + shift + 1]
    return float(np.log(np.sum(p**alpha * q ** (1 - alpha))) / (alpha - 1))


@pytest.mark.parametrize("alpha", [1.5, 2.0, 5.0])
@pytest.mark.parametrize(("users", "shift"), [(1, 2), (2, 1), (5, 2)])
def test_a_small_worlds_exact_divergence_is_within_the_accounted_one(users: int, shift: int, alpha: float) -> None:
    grid = Grid(bound=float(shift - 1), size=1, users=users, modulus=2**32, noise=1, honest=users)
    assert grid.reach == shift**2
    exact = exact_divergence(1, users, shift, alpha)
    assert exact <= alpha / (2 * event(grid).noise ** 2) * (1 + 1e-9)
    assert exact > 0.9 * alpha * shift**2 / (2 * users), "and not by much"


def test_more_honest_users_cost_less_and_no_noise_is_no_bound() -> None:
    costs = [event(Grid(10.0, 1000, 50, 2**32, noise=4, honest=h)).noise for h in (1, 2, 10, 50)]
    assert all(a < b for a, b in pairwise(costs))
    assert event(fit(1.0, 10, 5)).noise == 0
    for honest in (1, 20, 100):
        assert event(fit(0.3, 100_000, 100, 1.2, honest)).noise == pytest.approx(1.2, rel=1e-3)
