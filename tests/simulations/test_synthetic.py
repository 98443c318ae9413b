"""The synthetic task is what its closed forms say, every aggregator runs on it, and theory's expectations can fail."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import InputError
from simulations.synthetic import expectations, page, suite, table
from simulations.synthetic.federation import LOST, federate, measured, releases, steered, trained
from simulations.synthetic.suite import BASE, CROWD, Found
from simulations.synthetic.task import DELTA, STRENGTHS, A, B, Setting, effective, start, task
from strategies import aggregators
from strategies.aggregators import AGGREGATORS
from strategies.aggregators.fedit import mean_of_updates
from strategies.aggregators.scaffold import CONTROL
from strategies.base import Aggregator, Release
from strategies.lora import mean_products
from strategies.tree import State
from tests.simulations.command import call
from tests.strategies.given import ideal

IDENTITIES = {expectation.name for expectation in expectations.EXPECTATIONS if not expectation.at_end}


# ------------------------------------------------------------------ the task
def loss(world: Any, w_OI: torch.Tensor) -> float:
    """The users' mean loss, user by user."""
    return float(sum(p * (w_OI - d).square().sum() / 2 for p, d in zip(world.shares_K, world.optima_KOI, strict=True)))


def cut(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The nearest matrix of a rank."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0])
def test_the_excess_is_the_mean_loss_between_that_of_nothing_and_that_of_the_best_of_the_rank(skew: float, rank: int) -> None:
    world, draw = task(Setting(skew=skew, rank=rank, uneven=1.0), 3), torch.Generator().manual_seed(0)
    nothing, oracle = torch.zeros(24, 32, dtype=torch.float64), cut(world.mean_OI, rank)
    low, high = loss(world, oracle), loss(world, nothing)
    for _ in range(20):
        b, a = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((24, rank), (rank, 32)))
        w = oracle + 0.1 * (b @ a)
        assert world.excess(w, rank) == pytest.approx((loss(world, w) - low) / (high - low), abs=1e-9)
        assert world.excess(cut(w, rank), rank) >= -1e-12, "nothing of the rank is better than the oracle"
    assert world.excess(nothing, rank) == pytest.approx(1) and world.excess(oracle, rank) == pytest.approx(0, abs=1e-12)


def test_the_floor_is_the_excess_of_the_best_b_for_an_a() -> None:
    world, a = task(BASE, 0), start(BASE, 0, ())[A].double()
    best = torch.linalg.lstsq(a.T, world.mean_OI.T).solution.T
    assert world.floor(a.float()) == pytest.approx(world.excess(best @ a, BASE.rank), abs=1e-6)
    assert world.floor(a.float()) > 0.5


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0])
def test_skew_turns_users_apart_and_changes_nothing_else(skew: float) -> None:
    optima_KOI = task(Setting(users=6, skew=skew), 1).optima_KOI
    values = torch.linalg.svdvals(optima_KOI)
    torch.testing.assert_close(values[:, :4], torch.linspace(*STRENGTHS, 4, dtype=torch.float64).expand(6, 4))
    assert float(values[:, 4:].max()) < 1e-12
    alike = torch.einsum("koi,joi->kj", optima_KOI, optima_KOI) / optima_KOI.square().sum((1, 2))[0]
    others = alike[~torch.eye(6, dtype=torch.bool)]
    low, high = {0.0: (0.999, 1.001), 0.5: (0.3, 0.9), 1.0: (-0.3, 0.3)}[skew]
    assert low < float(others.min()) and float(others.max()) < high


def test_who_joins_changes_nobody_else() -> None:
    few, many = task(Setting(users=3, uneven=1.0), 2), task(Setting(users=9, uneven=1.0), 2)
    assert torch.equal(few.optima_KOI, many.optima_KOI[:3]) and torch.equal(few.sizes_K, many.sizes_K[:3])
    assert len(set(many.sizes_K.tolist())) > 3 and float(many.shares_K.sum()) == pytest.approx(1)
    assert len(set(task(Setting(users=9), 2).sizes_K.tolist())) == 1


# ------------------------------------------------------------------ users and measures
@pytest.mark.parametrize("moving", [(A, B), (B,), (A,)])
@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_a_user_trains_as_autograd_and_sgd_would(moving: tuple[str, ...], pull: float) -> None:
    setting, draw = Setting(users=2, steps=3), torch.Generator().manual_seed(1)
    world, received = task(setting, 0), start(setting, 0, ("lora_delta",))
    received |= {name: torch.randn(received[name].shape, generator=draw) / 5 for name in (B, DELTA)}
    ends = dict(zip((B, A), trained(world, setting, received, lambda name: name in moving, pull), strict=True))
    for user in range(2):
        at = {name: received[name].double().requires_grad_(name in moving) for name in (B, A)}
        optimizer = torch.optim.SGD([at[name] for name in moving], setting.lr)
        for _ in range(setting.steps):
            optimizer.zero_grad()
            away = sum((at[name] - received[name].double()).square().sum() for name in moving)
            ((received[DELTA].double() + at[B] @ at[A] - world.optima_KOI[user]).square().sum() / 2 + pull / 2 * away).backward()
            optimizer.step()
        for name, value in at.items():
            torch.testing.assert_close(ends[name][user], value.detach(), atol=1e-12, rtol=1e-12)


def test_a_users_control_variates_shift_every_step_and_become_the_mean_gradient() -> None:
    setting, draw = Setting(users=2, steps=3), torch.Generator().manual_seed(1)
    world, received = task(setting, 0), start(setting, 0, ())
    received |= {name: torch.randn(received[name].shape, generator=draw) / 5 for name in (B,)}
    received |= {f"{CONTROL}/{name}": torch.randn(received[name].shape, generator=draw) / 5 for name in (B, A)}
    own = {name: torch.randn(2, *received[name].shape, generator=draw, dtype=torch.float64) / 5 for name in (B, A)}
    ends = trained(world, setting, received, lambda _: True, 0.0, own)
    changes = steered(setting, received, own, ends)
    for user in range(2):
        at, slopes = {name: received[name].double() for name in (B, A)}, {B: [], A: []}
        for _ in range(setting.steps):
            gap = at[B] @ at[A] - world.optima_KOI[user]
            for name, slope in {B: gap @ at[A].T, A: at[B].T @ gap}.items():
                slopes[name].append(slope)
            at = {n: at[n] - setting.lr * (slopes[n][-1] - own[n][user] + received[f"{CONTROL}/{n}"].double()) for n in at}
        for name, end in zip((B, A), ends, strict=True):
            torch.testing.assert_close(end[user], at[name], atol=1e-12, rtol=1e-12)
            mean = torch.stack(slopes[name]).mean(0)
            torch.testing.assert_close(own[name][user] + changes[name][user], mean, atol=1e-12, rtol=1e-10)


def test_users_of_one_step_make_fedit_gradient_descent_on_the_mean_loss() -> None:
    setting = Setting(steps=1, uneven=1.0)
    world, at = task(setting, 0), {name: value.double() for name, value in start(setting, 0, ()).items()}
    for _ in range(8):
        gap = at[B] @ at[A] - world.mean_OI
        at = {B: at[B] - setting.lr * gap @ at[A].T, A: at[A] - setting.lr * at[B].T @ gap}
    assert federate(aggregators.build("fedit", {}), setting, 0, 8)[-1].excess == pytest.approx(world.excess(at[B] @ at[A], 4), abs=1e-5)


def test_the_measures_of_a_round_by_hand() -> None:
    setting, aggregator = Setting(users=3, uneven=1.0), aggregators.build("fedit", {})
    world, received = task(setting, 0), start(setting, 0, ())
    received[B] = torch.randn(24, 4, generator=torch.Generator().manual_seed(2)) / 5
    sent = list(releases(aggregator, setting, world, received, trained(world, setting, received, lambda _: True), 1))
    after = aggregator.apply({}, received, sent)[1]
    want, found = ideal(received, sent)[B], measured(setting, world, received, sent, after)
    assert [r.weight for r in sent] == world.sizes_K.tolist()
    assert found.error == pytest.approx(float((want - after[B].double() @ after[A].double()).norm()), rel=1e-6)
    assert found.change == pytest.approx(float((want - received[B].double() @ received[A].double()).norm()), rel=1e-6)
    assert found.covariance == pytest.approx(found.error, rel=1e-5), "what fedit loses is the covariance"
    assert found.tail == pytest.approx(float((want - cut(want, 4)).norm()), rel=1e-6)
    assert found.excess == pytest.approx(world.excess(effective(after), 4)) and found.size == pytest.approx(float(want.norm()))


def test_an_attacker_sends_its_update_turned_around_and_a_hundred_times() -> None:
    aggregator, honest = aggregators.build("fedit", {}), replace(BASE, users=3)
    world, received = task(honest, 0), start(honest, 0, ())
    ends = trained(world, honest, received, lambda _: True)
    one, two = (list(releases(aggregator, s, world, received, ends, 1)) for s in (honest, replace(honest, attackers=1)))
    for user, factor in enumerate((-100.0, 1.0, 1.0)):
        torch.testing.assert_close(two[user].update[B], one[user].update[B] * factor)
        assert two[user].weight == one[user].weight


def with_rest_in_the_base() -> Aggregator:
    """One that means the factors and gives the base what they lose."""

    def apply(memory: State, shared: State, given: Iterable[Release]) -> tuple[State, State]:
        sent = list(given)
        after, (product, _) = mean_of_updates(memory, shared, sent)[1], mean_products(shared, sent, dict)
        found = product[B, A]
        lost = found.b_OR @ found.a_RI - after[B].double() @ after[A].double()
        return memory, after | {DELTA: (shared[DELTA].double() + lost).float()}

    return Aggregator(lambda _: {}, apply, lambda _: ("lora_A", "lora_B"), linear=False, individual=True, paper="-", exact=True,
                      mutates_base=True, carried=("lora_delta",))  # fmt: skip


def test_what_goes_to_the_base_counts_and_is_bound_by_no_rank() -> None:
    outcome = suite.outcome(with_rest_in_the_base(), replace(BASE, skew=1.0), 0, 20)
    assert outcome.error < 1e-6
    assert all(row.error < row.tail for row in outcome.rounds[1:])
    assert min(row.excess for row in outcome.rounds) < 0, "better than the best of the rank"


@pytest.mark.parametrize("name", ["fedit", "ffa"])
def test_a_federation_that_diverges_ends_and_says_so(name: str) -> None:
    outcome = suite.outcome(aggregators.build(name, {}), replace(CROWD, attackers=4), 0, 40)
    assert (
        len(outcome.rounds) < 40
        and all(row.excess <= LOST for row in outcome.rounds[:-1])
        and outcome.excess == LOST
        and table.number(outcome.excess) == "diverges"
    )
    assert all(torch.tensor([row.error, row.excess]).isfinite().all() for row in outcome.rounds)


# ------------------------------------------------------------------ the study
FEW = {"skew": (BASE, (0.0, 0.5)), "users": (BASE, (8,)), "rank": (BASE, (4,))}


@pytest.fixture(scope="module")
def short() -> Found:
    """Every registered aggregator at a few points, two rounds long."""
    with pytest.MonkeyPatch.context() as patch:
        for axis, points in FEW.items():
            patch.setitem(suite.AXES, axis, points)
        return suite.run(2, 1)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer points for a study."""
    for axis, points in FEW.items():
        monkeypatch.setitem(suite.AXES, axis, points)


def test_every_registered_aggregator_is_in_the_study_or_left_out_with_a_reason(short: Found) -> None:
    missing = {*AGGREGATORS} - {*table.names(short)}
    assert missing == {*suite.left_out()} - {"flower.*"} and all(suite.left_out().values())


@pytest.mark.parametrize("name", sorted(IDENTITIES))
def test_an_identity_holds_from_the_first_round_on_and_fails_where_it_must(short: Found, name: str) -> None:
    found = {verdict["name"]: verdict for verdict in expectations.verdicts(short)}[name]
    assert found["checks"] and found["holds"] and found["control"]


def test_what_needs_training_is_not_asked_of_a_short_study(short: Found) -> None:
    found = {verdict["name"]: verdict["holds"] for verdict in expectations.verdicts(short)}
    assert Counter(found.values()) == {True: len(IDENTITIES), None: len(found) - len(IDENTITIES)}


@pytest.mark.parametrize(
    ("name", "who", "where"),
    [
        ("the error of a mean of factors grows with skew", ("fedit", "rolora"), "skew"),
        ("it shrinks as users join", ("fedit", "rolora"), "users"),
        ("ranks beyond the users' own shrink the tail", ("flexlora", "rolora"), "rank"),
        ("an A that trains with nobody stays in its row space", ("ffa", "fedsvd", "rolora"), "skew"),
        ("middles are biased under skew", ("median", "fedit", "lora_fair"), "skew"),
        ("robust ones survive one attacker of sixteen", (*expectations.ROBUST, "fedit"), "attackers"),
        ("control variates undo the drift of users", ("scaffold", "fedit", "fedprox"), "skew"),
        ("an update of the server's own survives ten attackers of sixteen", ("fltrust", "median"), "attackers"),
        ("nobody within the rank is better than the best of the rank", ("flora", "flexlora"), "skew"),
        ("a sketch loses little more than the tail", ("fedask", "median"), "skew"),
    ],
)
def test_what_theory_says_of_the_end_holds_and_its_control_fails(name: str, who: tuple[str, ...], where: str) -> None:
    points = [setting for (axis, at), setting in suite.settings().items() if axis == where and (axis, at) != ("attackers", 0)]
    points = points if "ten" in name else [setting for setting in points if setting.attackers < 10]
    found = {(one, setting): [suite.outcome(aggregators.build(one, {}), setting, 0, suite.ROUNDS)] for one in who for setting in points}
    verdict = expectations.verdict({e.name: e for e in expectations.EXPECTATIONS}[name], found)
    assert verdict["checks"] and verdict["holds"] and verdict["control"], verdict


def test_an_expectation_that_does_not_hold_or_that_nothing_can_fail_is_a_failure(short: Found) -> None:
    one = expectations.Expectation("x", "y", "z", lambda _: [1.0, -1.0], lambda _: [-1.0])
    two = one._replace(claim=lambda _: [1.0], control=lambda _: [1.0])
    good, unmeasured = one._replace(claim=lambda _: [0.0]), one._replace(claim=lambda _: [])
    found = [expectations.verdict(e, short) for e in (one, two, good, unmeasured)]
    assert expectations.failures(found) == found[:2]


def test_who_needs_what_users_here_have_not_is_left_out_with_a_reason() -> None:
    fedit = aggregators.build("fedit", {})
    assert suite.why_not(fedit) == ""
    assert "lora_control" in suite.why_not(fedit._replace(carried=("lora_control",)))
    assert suite.why_not(fedit._replace(phases=2)) and suite.why_not(fedit._replace(per_user_down=True))
    with pytest.raises(InputError, match="did you mean 'fedit'"):
        suite.chosen("fedti")


@pytest.mark.usefixtures("few")
def test_the_page_and_the_table_show_every_aggregator_and_expectation(short: Found) -> None:
    verdicts = expectations.verdicts(short)
    for text in (table.markdown(short, verdicts), page.render(short, verdicts)):
        plain = text.replace("&#x27;", "'")
        assert all(name in plain for name in (*table.names(short), *(verdict["name"] for verdict in verdicts), table.title(short)))
    error = {name: table.over(short[name, BASE], "error")["mean"] for name in table.names(short)}
    assert list(error.values()) == sorted(error.values()) and table.digest(2, 1) != table.digest(3, 1)


# ------------------------------------------------------------------ the command
@pytest.mark.usefixtures("few")
def test_the_command_writes_the_same_files_twice(here: Path) -> None:
    said = [call("synthetic", "--only", "fedit", "--rounds", "2", "--seeds", "2", "--out", here / name) for name in ("one", "two")]
    assert [answer.code for answer in said] == [0, 0], said[0].err
    for name in ("synthetic.json", "synthetic.md", "synthetic.html"):
        assert (here / "one" / name).read_bytes() == (here / "two" / name).read_bytes()
    tree = json.loads((here / "one" / "synthetic.json").read_text())
    assert tree["title"] == f"synthetic-{table.digest(2, 2)}, seeds 0, 1, 2 rounds" and {
        line["aggregator"] for line in tree["lines"]
    } == {"fedit"}
    assert "expectations: 3 of 3 hold" in said[0].out


@pytest.mark.usefixtures("few")
def test_an_expectation_that_fails_ends_the_command_with_code_1(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = expectations.Expectation("never", "it is made up", "-", lambda _: [-1.0], lambda _: [-1.0])
    monkeypatch.setattr(expectations, "EXPECTATIONS", (wrong,))
    answer = call("synthetic", "--only", "ffa", "--rounds", "1", "--seeds", "1", "--out", here / "one")
    assert answer.code == 1 and "failed: never: it is made up" in answer.out and (here / "one" / "synthetic.md").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--only", "fedti"), "unknown aggregator 'fedti' (did you mean 'fedit'?)"), (("--rounds", "0"), "x>=1"),
     (("--seed", "1"), "--seeds"), (("--out", "taken", "--rounds", "1"), "taken: File exists")],
)  # fmt: skip
def test_bad_input_is_one_sentence_with_code_2_and_nothing_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(suite, "run", lambda *_: pytest.fail("nothing runs"))
    Path("taken").write_text("")
    answer = call("synthetic", *words)
    assert answer.code == 2 and said in answer.err and answer.err.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["taken"]
