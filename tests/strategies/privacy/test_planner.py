"""A plan foretells the noise that a run then draws, and what it says would have to change is so."""

import math
from dataclasses import replace

import pytest
import torch

from client import dpsgd
from client.dpsgd import Guard
from client.flat import Flat
from client.learner import Learner
from configs.errors import InputError
from configs.scenario import load
from server.joint import cohorts
from strategies.aggregators.fedavgm import fedavgm
from strategies.base import Release
from strategies.privacy import budget, joint, planner, remedies
from strategies.privacy.events import Event
from strategies.privacy.local import privatized
from strategies.privacy.noise import keyed
from strategies.privacy.planner import Guarantee, Part, Setting, parts
from strategies.privacy.remedies import Remedy, least, ratio
from strategies.tree import State

NUMBERS = {("private", "private"): 256, ("shared", "shared"): 30_000, ("final", "private"): 256, ("joint", "shared"): 30_000}
FEDERATION = ("rounds=120", "users_per_round=25", "scheme=fedrep", "personalize=15", "private_training.epochs=6",
              "shared_training.batch=4096", "private_training.batch=4096")  # fmt: skip
E, U = ("privacy=example",), ("privacy=user", "rounds=12", "users_per_round=10", "sampling=cyclic")
MECHANISMS = ("gaussian", "adaptive", "banded", "local")
SHARED: State = {"x.lora_A.weight": torch.zeros(100, 200), "x.lora_B.weight": torch.zeros(100, 100)}


def setting(*settings: str, examples: int = 100, units: int = 0, users: int = 200) -> Setting:
    """A federation of full batches, changed."""
    return Setting(load("movielens", [*FEDERATION, *settings]), users, examples, units or examples, NUMBERS, cohorts)


def one(at: Setting, guarantee: Guarantee = "example", name: str = "shared") -> Part:
    """The part of a plan with a name."""
    return next(part for part in parts(at, guarantee) if part.name == name)


def drawn(part: Part, steps: int, examples: int, batch: int) -> torch.Tensor:
    """Noise that the engine adds to the means of 40 users over some steps, [steps, users, P]."""
    learners = [Learner({}, [None] * examples, [], (k,), part.noise) for k in range(40)]  # type: ignore[list-item]
    found = []
    for step in range(steps):
        flat = Flat({"w": torch.zeros(40, part.numbers)})
        dpsgd.add_noise(flat, learners, batch, Guard(part.clip, keyed), 0, step)
        found.append(flat.grad_KP)
    return torch.stack(found)


def rms(x_NP: torch.Tensor) -> float:
    """Root mean square L2 norm of rows."""
    return float(x_NP.norm(dim=-1).square().mean().sqrt())


# ------------------------------------------------------------------ what is foretold is what is drawn
@pytest.mark.parametrize("name", ["private", "final"])
def test_noise_to_signal_of_a_step_and_of_a_run_is_that_of_the_noise_that_the_engine_draws(name: str) -> None:
    part = one(setting(*E, "scheme=dual", "rounds=3", "private_training.epochs=2"), name=name)
    noise_TKP = drawn(part, round(part.kept), 100, 100)
    assert rms(noise_TKP) / part.clip == pytest.approx(part.step, rel=0.02)
    assert rms(noise_TKP.sum(0)) / (part.kept * part.clip) == pytest.approx(part.run, rel=0.05)


def test_noise_to_signal_of_a_rounds_mean_is_that_of_the_mean_over_its_users() -> None:
    part = one(setting(*E, "scheme=dual", "users_per_round=40"))
    noise_KP = drawn(replace(part, numbers=2000), 1, 100, 100)[0]
    assert rms(noise_KP.mean(0)) / part.clip * math.sqrt(part.numbers / 2000) == pytest.approx(part.mean, rel=0.05)


def test_signal_is_what_a_step_of_units_at_the_bound_gives_the_chunks_of_a_document_being_one_unit() -> None:
    chunks, whole = setting(*E, examples=100, units=20), setting(*E, examples=100)
    for part in parts(chunks, "example"):
        assert part.signal == pytest.approx(part.clip * 20 / 100)
        assert part.step == pytest.approx(5 * one(whole, name=part.name).step)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_noise_to_signal_of_a_round_and_of_a_run_is_that_of_the_noise_on_the_sum(mechanism: str) -> None:
    at = setting(*U, f"privacy.user.mechanism={mechanism}", users=40)
    (part,) = parts(at, "user")
    plan = joint.plan(at.scenario, cohorts(at.scenario, 40))
    aggregator = joint.around(fedavgm(0.0), plan, lambda number: keyed(number))
    memory, shared, moves = aggregator.init(SHARED), SHARED, []
    for number in range(1, 13):
        sent = [privatized(Release(SHARED, 1.0), 1.0, plan.noise, keyed(number, k), SHARED)[0] for k in range(10)]
        before = shared
        memory, shared = aggregator.apply(memory, shared, sent if mechanism == "local" else [])
        moves.append(torch.cat([(shared[name] - before[name]).flatten() for name in SHARED]))
    if mechanism == "adaptive":  # later rounds have a bound of their own
        assert float(moves[0].norm()) == pytest.approx(part.mean, rel=0.03)
    else:
        assert rms(torch.stack(moves)) == pytest.approx(part.mean, rel=0.03)
        assert float(sum(moves).norm()) / 12 == pytest.approx(part.run, rel=0.03)  # type: ignore[union-attr]


# ------------------------------------------------------------------ what is planned
def test_the_noise_is_the_one_that_a_purse_gives() -> None:
    at = setting(*E, "privacy.example.epsilon=3")
    assert {part.name: part.noise for part in parts(at, "example")} == budget.noise(at.scenario, 100, 120)


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        ({"users": 400}, 1.0),  # a round takes as many
        ({"numbers": {key: 4 * p for key, p in NUMBERS.items()}}, 2.0),
        ({"examples": 50, "units": 50}, 2.0),
    ],
)
def test_a_plan_moves_with_its_setting_as_the_formula_says(change: dict, factor: float) -> None:
    at = setting(*E)
    for before, after in zip(parts(at, "example"), parts(replace(at, **change), "example"), strict=True):
        assert after.run == pytest.approx(factor * before.run, rel=1e-6)


@pytest.mark.parametrize("guarantee", ["example", "user"])
def test_more_epsilon_or_users_or_a_smaller_rank_means_less_noise_for_the_same_signal(guarantee: Guarantee) -> None:
    name = "joint" if guarantee == "user" else "shared"
    usual = one(setting(), guarantee, name)
    halves = {key: p // 2 for key, p in NUMBERS.items()}
    for better in (setting(f"privacy.{guarantee}.epsilon=16"), setting("users_per_round=50"), replace(setting(), numbers=halves)):
        assert one(better, guarantee, name).run < 0.95 * usual.run
        assert one(better, guarantee, name).mean < 0.95 * usual.mean


def test_what_adds_up_is_what_stays() -> None:
    fresh, lasting = setting(*E), setting(*E, "scheme=dual", "private_from=20")
    assert one(fresh, name="private").kept == 6  # epochs: a head of FedRep begins anew each round
    assert one(lasting, name="private").kept == 6 * 100 * 25 / 200
    assert one(lasting).kept == 120  # rounds


def test_an_adapter_trained_beside_the_shared_one_is_a_part_of_its_own_and_is_not_averaged() -> None:
    numbers = {("shared", "shared"): 100, ("shared", "private"): 100}
    shared, private = parts(replace(setting(*E, "scheme=fedsa", "personalize=0"), numbers=numbers), "example")
    assert (shared.whose, private.whose) == ("shared", "private")
    assert shared.step == private.step == pytest.approx(5 * shared.mean) == private.mean


@pytest.mark.parametrize("guarantee", ["example", "user"])
def test_a_plan_after_a_ledger_that_holds_everything_is_refused_in_a_sentence(guarantee: Guarantee) -> None:
    spent = {guarantee: (Event(0.1, 5),)}
    with pytest.raises(InputError, match="epsilon"):
        parts(replace(setting(), spent=spent), guarantee)
    some = replace(setting(), spent={guarantee: (Event(2.0),)})
    assert all(after.noise > before.noise for after, before in zip(parts(some, guarantee), parts(setting(), guarantee), strict=True))


# ------------------------------------------------------------------ what would have to change
def by_hand(at: Setting, guarantee: Guarantee, part: Part, lever: str, after: float) -> float:
    """The ratio with one thing set anew, without `changed`."""
    less = {key: round(after) for key in NUMBERS} if lever == "numbers" else NUMBERS
    size = {"examples": round(after), "units": round(after)} if lever == "examples" else {}
    told = {"users": f"users_per_round={after:.0f}", "rounds": f"rounds={after:.0f}", "epsilon": f"privacy.{guarantee}.epsilon={after}"}
    scenario = load("movielens", [*FEDERATION, *SETTINGS[guarantee], *([told[lever]] if lever in told else [])])
    users = max(200, round(after)) if lever == "users" else 200
    found = one(replace(at, scenario=scenario, users=users, numbers=less, **size), guarantee, part.name)
    return found.run if part.run > 1 else found.mean


SETTINGS: dict[str, tuple[str, ...]] = {"example": E, "user": ("privacy=user",)}
WORSE = {"users": -0.02, "examples": -0.02, "epsilon": -0.02, "numbers": 0.03, "rounds": 0.0}


@pytest.mark.parametrize(("guarantee", "name"), [("example", "private"), ("example", "shared"), ("user", "joint")])
def test_each_change_that_is_said_to_be_enough_is_enough_and_a_little_less_is_not(guarantee: Guarantee, name: str) -> None:
    at = setting(*SETTINGS[guarantee])
    part = one(at, guarantee, name)
    found = remedies.remedies(at, guarantee, part)
    assert {"numbers", "epsilon", "rounds"} < {x.lever for x in found}
    assert any(x.enough for x in found)
    for x in found:
        assert by_hand(at, guarantee, part, x.lever, x.after) == pytest.approx(x.ratio)
        if x.enough:
            less = x.after + 1 if x.lever == "rounds" else x.after * (1 + WORSE[x.lever])
            assert by_hand(at, guarantee, part, x.lever, less) > 1, x


def test_a_change_that_is_not_enough_is_said_to_be_moved_as_far_as_it_goes() -> None:
    at = setting("privacy=user")
    part = one(at, "user", "joint")
    short = {x.lever: x for x in remedies.remedies(at, "user", part) if not x.enough}
    assert short["rounds"] == Remedy("rounds", 120, 1, pytest.approx(part.run, rel=1e-3), 200)  # type: ignore[arg-type]
    assert short["epsilon"].after == remedies.LARGEST_EPSILON


def test_where_noise_is_no_more_than_signal_nothing_has_to_change() -> None:
    at = setting(*E)
    part = one(at, name="final")
    assert max(part.step, part.run) < 1
    assert remedies.remedies(at, "example", part) == []
    private = one(at, name="private")
    assert (ratio(private), private.whose) == (private.run, "private")
    assert "users" not in {x.lever for x in remedies.remedies(at, "example", private)}, "others' data are no help to it"


def test_taking_turns_needs_more_users_altogether_where_those_of_a_round_are_more() -> None:
    at = setting("privacy=user", "sampling=cyclic")
    (users,) = [x for x in remedies.remedies(at, "user", one(at, "user", "joint")) if x.lever == "users"]
    assert users.enough
    assert users.users / 200 == pytest.approx(users.after / 25, rel=0.05)


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("start", [1.001, 3.0, 40.0])
def test_the_least_factor_is_found_to_a_percent_and_from_above(power: float, start: float) -> None:
    factor, reached = least(lambda x: start / x**power, 1e9)
    assert reached <= 1
    assert 1 <= factor / start ** (1 / power) < 1.01


def test_a_limit_that_is_not_enough_comes_with_what_it_reaches() -> None:
    assert least(lambda x: 8 / x, 4.0) == (4.0, 2.0)
    assert least(lambda _: 0.5, 4.0) == (1.0, 0.5)
    assert planner.SEEN["support"] + planner.SEEN["query"] == 1
