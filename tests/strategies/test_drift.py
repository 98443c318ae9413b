"""Detectors of a change: false alarms as rare as they say, changes found, one example moves a look no further than its noise covers."""

import math
from dataclasses import replace

import pytest
import torch

from configs.errors import InputError
from configs.life import Life
from configs.scenario import Scenario, load, scenario_hash
from strategies import drift
from strategies.drift import Detector, page_hinkley, paired
from strategies.privacy import accounting, budget, rules

UNITS, STREAMS = 24, 1000


def rate(detector: Detector, mean: float, spread: float, units: int = UNITS) -> float:
    """How many of so many users' periods raise an alarm: each unit is ``spread`` above or below the mean."""
    draw, found = torch.Generator().manual_seed(1), 0
    for _ in range(STREAMS):
        x_n = mean + spread * (2 * torch.randint(2, (units,), generator=draw) - 1)
        found += detector.see(torch.zeros(detector.memory), x_n, float(torch.randn((), generator=draw)))[1]
    return found / STREAMS


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_a_paired_look_raises_no_more_false_alarms_than_it_says(noise: float) -> None:
    """Coins of the bound's own size are the worst that there is: a bound that was half as large would be broken."""
    for alarm in (0.05, 0.2):
        assert 0.1 * alarm < rate(paired(alarm, 0.25, noise), 0.0, 0.25) <= alarm
    assert rate(paired(0.05, 0.25, noise), -0.1, 0.25) < 0.01


def test_page_hinkley_raises_no_more_false_alarms_than_it_says() -> None:
    assert rate(page_hinkley(), 0.0, 0.25, 100) <= 100 * math.exp(-2 * 0.05 * 5 / 0.25**2)
    assert rate(page_hinkley(1.0, prior=1e6), 0.0, 0.25, 100) > 0.2, "a threshold that is too low would be noticed"


def test_a_change_is_found() -> None:
    assert rate(paired(), 0.2, 0.1) > 0.95 and rate(paired(noise=4.0), 0.2, 0.1, 100) > 0.95
    draw, found = torch.Generator().manual_seed(4), 0
    for _ in range(200):
        calm, after = (mean + 0.1 * torch.randn(100, generator=draw) for mean in (-0.1, 0.2))
        notes, early = page_hinkley().see(torch.zeros(3), calm, 0.0)
        found += not early and page_hinkley().see(notes, after, 0.0)[1]
    assert found > 190


def test_one_unit_moves_a_look_by_no_more_than_its_bound() -> None:
    def flips_at(x_n: torch.Tensor) -> float:
        """The standard normal number at which a look becomes an alarm, by halving."""
        low, high = -1e3, 1e3
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if paired(noise=2.0).see(torch.zeros(0), x_n, middle)[1] else (middle, high)
        return high

    x_n = torch.randn(UNITS, generator=torch.Generator().manual_seed(2))
    for value in (1e9, -1e9, float("nan"), float("inf"), 0.1):
        with_it, without = x_n.clone(), x_n.clone()
        with_it[3], without[3] = value, 0.0
        assert abs(flips_at(with_it) - flips_at(without)) <= 1 / 2.0 + 1e-6


def test_page_hinkley_goes_on_from_period_to_period_and_begins_anew_after_an_alarm() -> None:
    detector, x_n = page_hinkley(), 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(3)) + 0.02
    whole, _ = detector.see(torch.zeros(3), x_n, 0.0)
    half, _ = detector.see(torch.zeros(3), x_n[:30], 0.0)
    torch.testing.assert_close(detector.see(half, x_n[30:], 0.0)[0], whole)
    assert float(whole[0]) == 60
    after, alarm = detector.see(whole, torch.full((60,), 0.5), 0.0)
    assert alarm and not after.any()


# ------------------------------------------------------------------ in a scenario
def scenario(*words: str, period: int = 2) -> Scenario:
    found = load("life", ["life.train=drift", *words])
    return replace(found, life=replace(found.life, period=period))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("privacy=example",), "looks at examples without noise"),
        (("privacy=example", "life.detector=page_hinkley"), "set life.detector=paired and life.detector_options.noise="),
        (("privacy=example", "life.detector_options.noise=1"), "takes more than a period's share"),
        (("life.detector_options.noise=8",), "is for guarantee E, which is off"),
        (("life.train=always", "life.detector=page_hinkley"), "only where life.train=drift"),
        *[((f"scheme={name}",), "none that stands apart") for name in ("fedsa", "finetune", "mr_mtl", "feddpa_t", "shared_only")],
        (("life.detector=pairde",), "did you mean 'paired'"),
        (("life.detector_options.alarms=1",), "did you mean 'alarm'"),
        (("life.detector_options.alarm=2",), "life.detector_options.alarm must be between"),
    ],
)
def test_what_would_be_unsound_or_mean_nothing_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        rules.refuse(scenario(*words))


def test_a_look_is_paid_for_beside_the_training() -> None:
    full = ("shared_training.batch=100", "private_training.batch=100")  # batches that hold everything are worked out at once
    guarded = scenario("privacy=example", "life.detector_options.noise=6", "weights=uniform", *full)
    rules.refuse(guarded)
    (look,) = drift.look(guarded)
    assert look.noise == 6 and drift.look(replace(guarded, life=replace(guarded.life, period=1))) == ()
    noise = budget.noise(guarded, 24, 8)
    parts = budget.planned(guarded, budget.schemes.of(guarded), 24, 8)
    events = [replace(cost, noise=noise[name]) for name, cost in parts.items()]
    level = guarded.privacy.example
    found = accounting.epsilons([(*events, look), tuple(events)], level.delta, guarded.privacy.accountant)
    assert found[1] < found[0] <= level.epsilon < 1.001 * found[0]


def test_scenarios_without_it_keep_their_digits() -> None:
    life = load("life")
    assert scenario_hash(life) == scenario_hash(replace(life, life=replace(life.life, detector="page_hinkley")))
    assert scenario_hash(life) != scenario_hash(replace(life, life=replace(life.life, train="drift")))
    assert scenario_hash(load("movielens")) == scenario_hash(replace(load("movielens"), life=Life()))
