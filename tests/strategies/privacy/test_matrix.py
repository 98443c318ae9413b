"""The factorization is one of prefix sums, the noise is what it says, and a user moves the releases by no more than was booked."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz

from configs.errors import InputError
from strategies.base import Release
from strategies.files import read_state, write_state
from strategies.privacy import user_level
from strategies.privacy.events import Event, merged
from strategies.privacy.matrix import (
    Banded,
    coefficients,
    correlated,
    decoder,
    encoder,
    error,
    participations,
    spent,
    start,
    sum_and_noise,
)
from strategies.privacy.noise import keyed, standard
from strategies.tree import State

LIKE: State = {"b": torch.zeros(2, 3), "a": torch.zeros(4)}
PLANS = [Banded(1, 1, 1), Banded(9, 1, 3), Banded(9, 2, 2), Banded(12, 4, 5), Banded(7, 7, 7)]


def drawn(how: Banded, like: State, seed: int = 0) -> list[State]:
    """The noise w_t of all rounds."""
    memory, found = start(how, like), []
    for number in range(1, how.rounds + 1):
        memory, noise = correlated(how, memory, standard(like, keyed(seed, number)), number)
        found.append(noise)
    return found


def test_the_coefficients_are_the_closed_form_of_the_square_root_of_prefix_sums() -> None:
    assert coefficients(30) == pytest.approx([math.comb(2 * i, i) / 4**i for i in range(30)], rel=1e-12)
    root = torch.tensor(toeplitz(coefficients(20), [1.0] + [0.0] * 19))
    torch.testing.assert_close(root @ root, torch.ones(20, 20, dtype=torch.float64).tril())


@pytest.mark.parametrize("how", PLANS)
def test_the_factors_multiply_to_prefix_sums_and_the_encoder_is_banded_with_columns_of_norm_one(how: Banded) -> None:
    c_TT, b_TT = encoder(how), decoder(how)
    torch.testing.assert_close(b_TT @ c_TT, torch.ones_like(c_TT).tril(), atol=1e-12, rtol=1e-12)
    assert torch.equal(c_TT, c_TT.tril().triu(1 - how.band).tril())
    assert int((c_TT != 0).sum()) == sum(min(how.band, how.rounds - t) for t in range(how.rounds))
    torch.testing.assert_close(c_TT.norm(dim=0), torch.ones(how.rounds, dtype=torch.float64))


@pytest.mark.parametrize("how", PLANS)
def test_the_streamed_noise_is_the_encoders_inverse_of_the_normal_numbers(how: Banded) -> None:
    normal_TN = torch.stack([standard(LIKE, keyed(0, t))["b"].flatten() for t in range(1, how.rounds + 1)])
    want_TN = torch.linalg.solve(encoder(how), normal_TN)
    found_TN = torch.stack([noise["b"].flatten() for noise in drawn(how, LIKE)])
    torch.testing.assert_close(found_TN, want_TN, atol=1e-10, rtol=1e-10)


def test_band_one_is_independent_noise_bit_for_bit() -> None:
    how, memory = Banded(3, 1, 1), start(Banded(3, 1, 1), LIKE)
    assert memory == {}
    for number in (1, 2, 3):
        cohort = [Release({n: torch.ones_like(v) for n, v in LIKE.items()}, 1.0)]
        memory, ours, event = sum_and_noise(how, memory, cohort, number, 0.5, 1.2, 4.0, keyed(number), LIKE)
        theirs, cost = user_level.sum_and_noise(cohort, 0.5, 1.2, 4.0, keyed(number), LIKE)
        assert event == cost
        assert (ours.weight, ours.users, ours.metrics) == (theirs.weight, theirs.users, theirs.metrics)
        assert all(torch.equal(ours.update[n], v) for n, v in theirs.update.items())


def test_the_noise_of_prefix_sums_has_the_covariance_of_the_decoder_as_released() -> None:
    how, like = Banded(8, 3, 3), {"w": torch.zeros(40_000)}
    memory, rounds = start(how, like), []
    for number in range(1, 9):
        memory, release, _ = sum_and_noise(how, memory, [], number, 0.5, 2.0, 4.0, keyed(number), like)
        rounds.append(release.update["w"].double())
    sums_TN = torch.stack(rounds).cumsum(0)
    want_TT = decoder(how) @ decoder(how).T
    for scale, fits in ((2.0 * 0.5, True), (2.0 * 0.5 * 2 / 3, False), (2.0 * 0.5 * 3 / 2, False)):
        found_TT = sums_TN @ sums_TN.T / 40_000 / scale**2
        assert torch.allclose(found_TT, want_TT, atol=0.05 * float(want_TT.max()), rtol=0) == fits


@pytest.mark.parametrize("band", [2, 4, 16, 64])
def test_prefix_sums_have_less_noise_than_with_independent_noise_of_the_same_cost(band: int) -> None:
    ours, independent = Banded(64, band, band), Banded(64, 1, band)
    assert spent(ours, 1.0, 64) == spent(independent, 1.0, 64)
    assert error(independent) == pytest.approx(math.sqrt(65 / 2))
    assert error(ours) < 0.9 * error(independent)


# ------------------------------------------------------------------ sensitivity
def moved(how: Banded, rounds: list[int], norms: list[float]) -> float:
    """How far a user who takes part in these rounds (from 0), each time in the same direction, moves C x."""
    u_T = torch.zeros(how.rounds, dtype=torch.float64)
    u_T[rounds] = torch.tensor(norms, dtype=torch.float64)
    return float((encoder(how) @ u_T).norm())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rounds=st.integers(1, 30), band=st.integers(1, 30), more=st.integers(0, 5), data=st.data())
def test_a_user_moves_the_encoded_sums_by_at_most_what_is_booked(rounds: int, band: int, more: int, data: st.DataObject) -> None:
    how = Banded(rounds, min(band, rounds), min(band, rounds) + more)
    takes, at = [], data.draw(st.integers(0, rounds - 1))
    while at < rounds:
        takes.append(at)
        at += how.separation + data.draw(st.integers(0, 4))
    norms = data.draw(st.lists(st.floats(-1, 1), min_size=len(takes), max_size=len(takes)))
    event = spent(how, 1.0, rounds)
    assert len(takes) <= participations(how, rounds)
    assert moved(how, takes, norms) <= math.sqrt(event.steps) / event.noise + 1e-9


def test_that_is_reached_by_the_busiest_user_and_passed_by_one_who_comes_too_often() -> None:
    how = Banded(12, 4, 4)
    assert spent(how, 2.0, 12) == Event(2.0, steps=3)
    assert moved(how, [0, 4, 8], [1.0] * 3) == pytest.approx(math.sqrt(3))
    assert moved(how, [0, 3, 6], [1.0] * 3) > math.sqrt(3) * 1.05


@pytest.mark.parametrize("how", PLANS)
def test_what_the_rounds_book_adds_up_to_the_whole_after_any_of_them(how: Banded) -> None:
    memory, events = start(how, LIKE), []
    for number in range(1, how.rounds + 1):
        memory, _, event = sum_and_noise(how, memory, [], number, 1.0, 1.5, 4.0, keyed(number), LIKE)
        events.append(event)
        assert merged(events) == (spent(how, 1.5, number),)
        assert spent(how, 1.5, number).steps == len(range(0, number, how.separation))


# ------------------------------------------------------------------ memory
def test_a_run_resumed_from_its_memory_goes_on_with_the_same_noise(tmp_path) -> None:
    how, memory = Banded(8, 3, 3), start(Banded(8, 3, 3), LIKE)
    want = drawn(how, LIKE)
    assert len(memory) == 2 * len(LIKE)
    for number, noise in enumerate(want, start=1):
        names = list(memory)
        memory, found = correlated(how, memory, standard(LIKE, keyed(0, number)), number)
        assert set(memory) == set(names)
        assert all(torch.equal(found[n], noise[n]) for n in LIKE)
        write_state(tmp_path / "memory.safetensors", memory)
        memory = read_state(tmp_path / "memory.safetensors")


def test_a_round_leaves_its_inputs_alone() -> None:
    how = Banded(4, 3, 3)
    memory, _ = correlated(how, start(how, LIKE), standard(LIKE, keyed(1)), 1)
    before = {n: v.clone() for n, v in memory.items()}
    normal = standard(LIKE, keyed(2))
    correlated(how, memory, normal, 2)
    assert all(torch.equal(memory[n], v) for n, v in before.items())
    assert all(torch.equal(normal[n], v) for n, v in standard(LIKE, keyed(2)).items())


@pytest.mark.parametrize(("field", "bad"), [("band", (3, 4, 4)), ("band", (3, 0, 4)), ("separation", (9, 4, 3))])
def test_a_plan_that_would_not_hold_is_refused(field: str, bad: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=field):
        Banded(*bad)


def test_rounds_outside_of_the_plan_are_refused() -> None:
    how = Banded(3, 2, 2)
    for number in (0, 4):
        with pytest.raises(InputError, match="round"):
            sum_and_noise(how, start(how, LIKE), [], number, 1.0, 1.0, 4.0, keyed(0), LIKE)
