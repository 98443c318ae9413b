"""Accounting never says less than the truth, says the same for the same history, and its inverses stay inside the target."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise, permutations

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant

from configs.errors import InputError
from strategies.privacy import accounting
from strategies.privacy.accounting import ACCOUNTANTS, SpentError, affordable, epsilon, epsilons, noise_factor, scaled
from strategies.privacy.events import Event
from strategies.privacy.gaussian import epsilon_for, mu_for

DELTA = 1e-5
SGD = Event(1.0, 200, 0.05, "poisson")
MIXED = (SGD, Event(2.0, 40, 0.1, "poisson"), Event(3.0, 4), Event(6.0, 2))
FIXED = Event(4.0, 20, 0.1, "fixed")
KNOWN = Event(5.0, 8, kind="concentrated")
HISTORIES = {
    "whole": (Event(3.5, 14), Event(4.3, 29), Event(8.7, 8), Event(3.5, 26)),
    "poisson": (SGD,),
    "mixed": MIXED,
    "fixed": (FIXED,),
    "known": (KNOWN, Event(3.0)),
}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each method runs, from empty caches on."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> None:
        method = accounting.METHODS[name]
        monkeypatch.setitem(accounting.METHODS, name, lambda parts, delta: counts.update([name]) or method(parts, delta))

    for name in tuple(accounting.METHODS):
        counted(name)
    accounting._composed.cache_clear()
    accounting._factor.cache_clear()
    yield counts
    accounting._composed.cache_clear()


# --- against what is published, and what is true


@pytest.mark.parametrize(
    ("event", "delta", "want"),
    [
        (Event(1.0, 1000, 0.01, "poisson"), 1e-5, {"rdp": 2.1014, "prv": 1.8384, "pld": 1.8282}),
        (Event(0.8, 500, 0.05, "poisson"), 1e-5, {"rdp": 13.335, "prv": 12.046, "pld": 12.035}),
        (Event(1.0, 100, 0.1, "poisson"), 1e-6, {"rdp": 8.9148, "prv": 8.0690, "pld": 8.0586}),
    ],
)
def test_the_three_accountants_give_their_published_numbers_in_their_order(event: Event, delta: float, want: dict[str, float]) -> None:
    found = {name: epsilon([event], delta, name) for name in ACCOUNTANTS}
    assert found == pytest.approx(want, rel=1.5e-4)
    assert found["pld"] <= found["prv"] <= found["rdp"]


def test_sampling_orders_the_cost_and_replacing_a_unit_counts_twice() -> None:
    cost = {sampling: epsilon([Event(1.0, 100, 0.1, sampling)], 1e-6) for sampling in ("poisson", "fixed", "all")}
    assert cost["poisson"] == pytest.approx(8.06, abs=0.01)
    assert cost["all"] == pytest.approx(96.7, abs=0.1)
    assert cost["poisson"] < cost["fixed"] < cost["all"]
    assert epsilon([Event(2.0, 100, 0.1, "fixed")], 1e-6) == pytest.approx(15.2, abs=0.02)  # noise 1 for the 2 S between two units


@pytest.mark.parametrize(("noise", "steps", "rate"), [(2.0, 100, 0.1), (4.0, 50, 0.5), (2.0, 1, 1.0)])
def test_fixed_sampling_covers_the_attack_that_turns_one_unit_around(noise: float, steps: int, rate: float) -> None:
    """All units send e, and one sends e or -e: the sum is m e, or with the chance ``rate`` (m - 2) e."""
    attack = PLDAccountant()
    attack.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise / 2)), steps)
    assert epsilon([Event(noise, steps, rate, "fixed")], DELTA) >= attack.get_epsilon(DELTA) * 0.999
    both = epsilon([Event(noise, steps, rate, "fixed"), Event(noise)], DELTA)
    attack.compose(GaussianDpEvent(noise / 2))
    assert both >= attack.get_epsilon(DELTA) * 0.999


@pytest.mark.parametrize(("sampling", "share"), [("poisson", 1.0), ("fixed", 0.5)])
def test_noise_too_small_to_compute_with_costs_what_it_costs_without_sampling(sampling: str, share: float) -> None:
    whole = epsilon([Event(0.005 * share)], DELTA)
    for accountant in ACCOUNTANTS:
        found = epsilon([Event(0.005, 1, 0.1, sampling)], DELTA, accountant)  # pyright: ignore[reportArgumentType]
        assert whole - 10 < found < whole * 1.1


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_whole_steps_under_replacement_cost_what_half_the_noise_costs(noise: float) -> None:
    whole, spent = Event(noise, 3), Event(1e5, 1, 0.01, "fixed")
    assert epsilon([whole, spent], DELTA) == pytest.approx(epsilon([Event(noise / 2, 3)], DELTA, "rdp"), rel=1e-3)
    assert epsilon([Event(noise, 3, kind="concentrated"), spent], DELTA) == epsilon([whole, spent], DELTA)


@pytest.mark.parametrize("accountant", ["pld", "prv"])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10])
def test_whole_gaussians_are_exact_whatever_is_asked_for(accountant: str, delta: float) -> None:
    events = [Event(4.0, 3), Event(9.0, 50), Event(2.5)]
    mu = math.sqrt(sum(e.steps / e.noise**2 for e in events))
    exact = epsilon(events, delta, accountant)
    assert exact == pytest.approx(float(epsilon_for(np.array([mu]), delta)[0]), rel=1e-9)
    numeric = PLDAccountant()
    for event in events:
        numeric.compose(GaussianDpEvent(event.noise), event.steps)
    assert numeric.get_epsilon(delta) * 0.99 <= exact <= numeric.get_epsilon(delta)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_sampling_nearly_everybody_costs_no_less_than_the_closed_form(accountant: str) -> None:
    exact = epsilon([Event(10.0, 100)], DELTA)
    assert exact * (1 - 1e-9) <= epsilon([Event(10.0, 100, 1 - 1e-12, "poisson")], DELTA, accountant) <= exact * 1.1


def test_a_concentrated_step_costs_its_rdp() -> None:
    orders = np.linspace(1.01, 200, 100_000)
    curve = orders * 8 / (2 * KNOWN.noise**2)
    best = (curve + np.log1p(-1 / orders) - np.log(DELTA * orders) / (orders - 1)).min()
    for accountant in ACCOUNTANTS:
        assert best * (1 - 1e-6) <= epsilon([KNOWN], DELTA, accountant) <= best * 1.01
    assert epsilon([KNOWN], DELTA) > epsilon([Event(KNOWN.noise, KNOWN.steps)], DELTA)
    assert epsilon([KNOWN, SGD], DELTA) > epsilon([SGD], DELTA, "rdp")


@pytest.mark.parametrize("history", [HISTORIES["whole"], MIXED])
def test_pld_and_prv_are_below_rdp(history: tuple[Event, ...]) -> None:
    assert max(epsilon(history, DELTA), epsilon(history, DELTA, "prv")) < epsilon(history, DELTA, "rdp")


# --- how cost moves


@pytest.mark.parametrize(
    ("accountant", "sampling"),
    [("pld", "all"), ("rdp", "all"), ("pld", "poisson"), ("prv", "poisson"), ("rdp", "poisson"), ("rdp", "fixed")],
)
def test_more_steps_more_rate_less_noise_less_delta_cost_more(accountant: str, sampling: str) -> None:
    def cost(noise: float = 2.0, steps: int = 20, rate: float = 0.1, delta: float = DELTA) -> float:
        return epsilon([Event(noise, steps, rate, sampling)], delta, accountant)  # pyright: ignore[reportArgumentType]

    rising = [
        [cost(steps=n) for n in (0, 1, 20, 400)],
        [cost(noise=z) for z in (math.inf, 8.0, 2.0, 0.5, 0.01, 1e-5, 0.0)],
        [cost(delta=d) for d in (1e-3, 1e-5, 1e-7)],
        [cost(rate=q) for q in (0.1, 0.4, 0.9)],
    ]
    for costs in rising[: 3 if sampling == "all" else 4]:
        assert all(a < b for a, b in pairwise(costs)), costs


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_order_and_grouping_of_events_do_not_matter(accountant: str, history: tuple[Event, ...]) -> None:
    want = epsilon(history, DELTA, accountant)
    assert {epsilon(order, DELTA, accountant) for order in permutations(history)} == {want}
    apart = [Event(e.noise, n, e.rate, e.sampling, e.kind) for e in history for n in (1, e.steps - 1)]
    assert epsilon(apart, DELTA, accountant) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_nothing_costs_nothing_and_no_noise_costs_everything(accountant: str) -> None:
    assert epsilon([], DELTA, accountant) == 0
    assert epsilon([Event(0.0, 0), Event(math.inf, 7)], DELTA, accountant) == 0
    for event in (Event(0.0), Event(0.0, 1, 0.1, "poisson"), Event(0.0, 1, 0.1, "fixed"), Event(0.0, kind="concentrated")):
        assert epsilon([event], DELTA, accountant) == math.inf
        assert epsilon([Event(3.0, 2), event], DELTA, accountant) == math.inf


def test_poisson_sampling_of_everybody_is_no_sampling() -> None:
    assert epsilon([Event(2.0, 3, 1.0, "poisson")], DELTA) == epsilon([Event(2.0, 3)], DELTA)


# --- many users


def test_equal_histories_are_accounted_once(computed: Counter[str]) -> None:
    users = [(Event(2.0, 10 + n % 3, 0.1, "poisson"), Event(3.0, 1 + n % 2)) for n in range(300)]
    found = epsilons(users, DELTA)
    assert computed == {"pld": 6}
    assert epsilons([tuple(reversed(user)) for user in users], DELTA) == found
    assert computed == {"pld": 6}
    assert found[:6] == [epsilon(user, DELTA) for user in users[:6]]


@pytest.mark.parametrize("event", [Event(0.05, 2, 0.5, "poisson"), Event(60.0, 100_001, 0.01, "poisson")], ids=["mu", "steps"])
def test_where_prv_would_overflow_or_take_gigabytes_pld_answers(event: Event) -> None:
    assert epsilon([event], DELTA, "prv") == epsilon([event], DELTA, "pld")
    within = [Event(event.noise * 2, min(event.steps, 100_000), event.rate, "poisson")]
    assert epsilon(within, DELTA, "prv") != epsilon(within, DELTA, "pld")


def test_the_rdp_of_large_noise_is_never_below_its_leading_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "ORDERS", np.array([1.2, 20.0]))
    for noise in (1e3, 1e6, 1e12):
        curve = accounting._curve.__wrapped__(noise, 0.5)
        counted = min(noise, 1e6)  # beyond a million, noise counts as a million
        assert (curve >= accounting.ORDERS * 0.25 / (2 * counted**2)).all()
        assert (curve < accounting.ORDERS * 0.26 / (2 * counted**2) + 1e-10).all()


def test_without_replacement_noise_beyond_a_million_counts_as_a_million() -> None:
    cost = [epsilon([Event(noise, 10**9, 0.5, "fixed")], DELTA) for noise in (1e5, 1e6, 1e7, 1e9)]
    assert cost[0] > cost[1] >= cost[2] == cost[3] > 0.1


def test_whole_histories_that_all_differ_need_no_numerical_accountant(computed: Counter[str]) -> None:
    users = [(Event(1 + n / 100, 3), Event(5.0, 1 + n % 7)) for n in range(500)]
    found = epsilons(users, DELTA)
    assert not computed
    assert found[::50] == [epsilon(user, DELTA) for user in users[::50]]


# --- the inverses


@pytest.mark.parametrize(
    ("accountant", "history", "target"),
    [
        *((a, HISTORIES[h], t) for a in ("pld", "rdp") for h, t in (("whole", 0.8), ("whole", 6.0), ("mixed", 3.0), ("known", 3.0))),
        ("prv", MIXED, 0.8),
        ("pld", (FIXED,), 3.0),
    ],
)
def test_the_noise_factor_is_the_smallest_inside_the_target(accountant: str, history: tuple[Event, ...], target: float) -> None:
    factor = noise_factor(history, target, DELTA, accountant)
    assert 0.995 * target <= epsilon(scaled(history, factor), DELTA, accountant) <= target
    assert epsilon(scaled(history, factor / 1.0011), DELTA, accountant) > target


PASTS = {"whole": (Event(9.0, 9),), "poisson": (Event(4.0, 100, 0.05, "poisson"),), "known": (KNOWN,)}


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(("past", "history"), [("whole", "whole"), ("whole", "poisson"), ("poisson", "whole"), ("poisson", "mixed"),
                                               ("known", "whole")])  # fmt: skip
def test_after_a_past_the_noise_factor_is_the_smallest_that_keeps_both_inside_the_target(
    accountant: str, past: str, history: str
) -> None:
    spent, parts, target = PASTS[past], HISTORIES[history], 3.0
    factor = noise_factor(parts, target, DELTA, accountant, spent)
    assert factor > noise_factor(parts, target, DELTA, accountant)
    assert 0.99 * target < epsilon((*spent, *scaled(parts, factor)), DELTA, accountant) <= target
    assert epsilon((*spent, *scaled(parts, factor / 1.0021)), DELTA, accountant) > target


@pytest.mark.parametrize("share", [0.1, 0.9, 0.999999])
def test_what_whole_steps_leave_of_a_budget_is_subtracted_in_squares(computed: Counter[str], share: float) -> None:
    mu = mu_for(3.0, DELTA)
    spent = (Event(1 / (mu * share)),)
    factor = noise_factor([Event(1.0, 4)], 3.0, DELTA, "pld", spent)
    assert factor == pytest.approx(2 / (mu * (1 - share**2) ** 0.5), rel=1e-3)
    assert 2.999 < epsilon((*spent, Event(factor, 4)), DELTA) <= 3.0
    assert not computed


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("parts", [(Event(1.0),), (Event(1.0, 9, 0.1, "poisson"),)], ids=["whole", "poisson"])
def test_where_nothing_is_left_it_says_what_is_spent(accountant: str, parts: tuple[Event, ...]) -> None:
    spent = (Event(1.5, 2),)
    assert epsilon(spent, DELTA, accountant) > 3.0
    with pytest.raises(SpentError, match=r"^of epsilon 3 the ledger has spent (4|5)\.\d+, and nothing is left; set a larger"):
        noise_factor(parts, 3.0, DELTA, accountant, spent)
    full = (Event(1 / mu_for(3.0, DELTA) * (1 + 1e-9)),)
    if accountant != "rdp":
        with pytest.raises(SpentError, match="has spent 3, "):
            noise_factor(parts, 3.0, DELTA, accountant, full)
    with pytest.raises(SpentError, match="has spent inf, "):
        noise_factor(parts, 3.0, DELTA, accountant, (Event(0.0),))
    assert noise_factor([], 3.0, DELTA, accountant, spent) == 0


def test_a_noise_factor_takes_few_computations_and_is_kept(computed: Counter[str]) -> None:
    first = noise_factor(MIXED, 3.0, DELTA)
    assert computed["pld"] <= 9
    before = computed.copy()
    assert noise_factor(MIXED[::-1], 3.0, DELTA) == first
    assert computed == before


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(
    ("event", "spent"),
    [
        (Event(9.0), (Event(3.0),)),
        (Event(1.0, 1, 0.05, "poisson"), (SGD, Event(5.0, 2))),
        (Event(8.0, 99, kind="concentrated"), (KNOWN,)),
    ],
)
def test_what_is_affordable_fits_and_one_step_more_does_not(accountant: str, event: Event, spent: tuple[Event, ...]) -> None:
    steps = affordable(event, spent, 6.0, DELTA, accountant)
    fits, over = ((*spent, Event(event.noise, n, event.rate, event.sampling, event.kind)) for n in (steps, steps + 1))
    assert steps > 1
    assert epsilon(fits, DELTA, accountant) <= 6.0 < epsilon(over, DELTA, accountant)


def test_nothing_is_affordable_without_noise_or_after_the_target() -> None:
    assert affordable(Event(0.0), (), 5.0, DELTA) == 0
    assert affordable(Event(50.0), (Event(0.5),), 1.0, DELTA) == 0
    assert affordable(Event(math.inf), (), 5.0, DELTA) == accounting.MOST_STEPS
    assert affordable(Event(9.0), (), 5.0, DELTA) > affordable(Event(9.0), (Event(3.0),), 5.0, DELTA) > 0


# --- what is refused


@pytest.mark.parametrize(("name", "said"), [("gdp", "under-estimates"), ("pdl", "did you mean 'pld'")])
def test_a_wrong_accountant_is_refused_in_a_sentence(name: str, said: str) -> None:
    for call in (
        lambda: accounting.check(name),
        lambda: epsilon([SGD], DELTA, name),
        lambda: noise_factor([SGD], 1.0, DELTA, name),
        lambda: affordable(SGD, (), 1.0, DELTA, name),
    ):
        with pytest.raises(InputError, match=said):
            call()


@pytest.mark.parametrize(
    ("target", "delta", "said"),
    [(0.0, DELTA, "epsilon"), (-1.0, DELTA, "epsilon"), (math.nan, DELTA, "epsilon"), (1.0, 0.0, "delta"), (1.0, 1.0, "delta")],
)
def test_a_target_that_is_none_is_refused(target: float, delta: float, said: str) -> None:
    for call in (lambda: noise_factor([SGD], target, delta), lambda: affordable(SGD, (), target, delta)):
        with pytest.raises(InputError, match=f"^{said} must be"):
            call()


def test_a_factor_that_does_not_exist_is_refused_and_of_nothing_is_zero() -> None:
    with pytest.raises(InputError, match="noise must be above 0"):
        noise_factor([SGD, Event(0.0)], 1.0, DELTA)
    with pytest.raises(InputError, match=r"epsilon 0.005 is below what 'prv' can show"):
        noise_factor([SGD], 0.005, DELTA, "prv")
    assert noise_factor([], 1.0, DELTA) == 0


def test_histories_that_no_theorem_covers_are_refused() -> None:
    with pytest.raises(ValueError, match="neighbours"):
        epsilon([SGD, FIXED], DELTA)
    for sampling in ("poisson", "fixed"):
        with pytest.raises(ValueError, match="concentrated"):
            epsilon([Event(2.0, 1, 0.1, sampling, "concentrated")], DELTA)
