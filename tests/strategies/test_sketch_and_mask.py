"""FedASK's two sums of sketches, and the ranks that LoRA-A2 keeps."""

import math

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from configs.scenario import Privacy, Scenario
from strategies import aggregators
from strategies.aggregators.fedask import omega
from strategies.base import Release
from strategies.privacy import rules
from strategies.tree import State
from tests.strategies.given import ALONE, MODULES, WEIGHTS, R, after, applied, assert_close, effect, ideal, release, releases, shared

NAMES = [(f"{module}.lora_B.weight", f"{module}.lora_A.weight") for module in MODULES]
FEDIT = aggregators.build("fedit", {})


def gaps(found: State, want: dict[str, Tensor]) -> list[float]:
    """How far each module's product lies from what it should be, in Frobenius norm."""
    return [float((found[b].double() @ found[a].double() - want[b]).norm()) for b, a in NAMES]


# ------------------------------------------------------------------ fedask
@pytest.mark.parametrize("over", [0, 1, 4])
def test_fedask_is_exact_where_all_users_products_span_no_more_than_the_rank(over: int) -> None:
    fedask, start = aggregators.build("fedask", {"over": over}), shared()
    turns = {a: torch.linalg.qr(torch.randn(R, R, generator=torch.Generator().manual_seed(k))).Q for k, (_, a) in enumerate(NAMES)}
    one_space = [shared(10 + k) | {a: (k + 1) * turns[a] @ start[a] - start[a] for _, a in NAMES} for k in range(3)]
    frozen = [{n: v for n, v in shared(10 + k).items() if ".lora_A." not in n} for k in range(3)]
    for users in (one_space, frozen):
        given = [release(fedask, user, w) for user, w in zip(users, WEIGHTS, strict=True)]
        assert max(gaps(applied(fedask, given)[1], ideal(start, given))) < 1e-4


def test_fedask_truncates_beyond_the_rank_and_no_better_than_an_svd() -> None:
    given = releases(FEDIT)
    want = ideal(shared(), given)
    tails = [float(torch.linalg.svdvals(want[b])[R:].norm()) for b, _ in NAMES]
    found = {over: gaps(applied(aggregators.build("fedask", {"over": over}), given)[1], want) for over in (0, 1, 9)}
    for index, tail in enumerate(tails):
        assert tail > 0.3
        assert all(gap[index] >= tail * (1 - 1e-6) for gap in found.values())
        assert found[0][index] > tail * 1.01  # three directions looked at, of five
        assert found[9][index] == pytest.approx(tail, rel=1e-5)  # all of them
    flexlora = applied(aggregators.build("flexlora", {}), given)[1]
    assert_close(effect(applied(aggregators.build("fedask", {"over": 9}), given)[1]), effect(flexlora), 1e-4)


@pytest.mark.parametrize("over", [0, 1])
def test_fedask_is_the_papers_two_sums_over_users(over: int) -> None:
    given, start = releases(FEDIT), shared()
    found = applied(aggregators.build("fedask", {"over": over}), given)[1]
    ends, share = [after(start, r) for r in given], [w / sum(WEIGHTS) for w in WEIGHTS]
    for b, a in NAMES:
        look = omega(b, start[a], over)
        assert look.shape == (start[a].shape[1], R + over)
        q = torch.linalg.qr(sum(p * end[b] @ (end[a] @ look) for p, end in zip(share, ends, strict=True))).Q  # type: ignore[arg-type]
        p_IW: Tensor = sum(p * end[a].T @ (end[b].T @ q) for p, end in zip(share, ends, strict=True))  # type: ignore[assignment]
        u, s, v = torch.linalg.svd(q @ p_IW.T, full_matrices=False)
        torch.testing.assert_close(found[b].double() @ found[a].double(), u[:, :R] * s[:R] @ v[:R], atol=1e-5, rtol=1e-5)
        for gram in (found[b].T @ found[b], found[a] @ found[a].T):  # each factor has the root of the singular values
            torch.testing.assert_close(gram, s[:R].diag().float(), atol=1e-4, rtol=1e-4)


def test_what_one_exchange_loses_is_that_no_sum_of_releases_is_enough() -> None:
    """Two crowds whose releases add up alike: their mean products differ, and with them the sums that two exchanges would send."""
    draw, start, fedask = shared(50), shared(), aggregators.build("fedask", {})
    middle = {n: shared(10)[n] for n in start}
    crowds = [[{n: v + s * size * draw[n] for n, v in middle.items()} for s in (1, -1)] for size in (0.2, 1.0)]
    given = [[release(FEDIT, user, 1.0) for user in crowd] for crowd in crowds]
    assert all(torch.allclose(sum(r.update[n] for r in given[0]), sum(r.update[n] for r in given[1]), atol=1e-5) for n in start)  # type: ignore[arg-type]
    assert_close(applied(FEDIT, given[0])[1], applied(FEDIT, given[1])[1], 1e-5)
    one, two = (effect(applied(fedask, crowd)[1]) for crowd in given)
    looks = [
        [sum(after(start, r)[b] @ (after(start, r)[a] @ omega(b, start[a], 2)) for r in crowd) for b, a in NAMES] for crowd in given
    ]
    for (b, _), first, second in zip(NAMES, *looks, strict=True):
        assert float((one[b] - two[b]).norm()) > 0.5 and float((first - second).norm()) > 0.5  # type: ignore[operator]
    assert not fedask.linear and list(rules.problems(Scenario(aggregator="fedask", weights="uniform", privacy=Privacy("user"))))


# ------------------------------------------------------------------ lora_a2
def test_lora_a2_that_keeps_all_ranks_is_rolora_to_the_bit() -> None:
    rolora, whole = aggregators.build("rolora", {}), aggregators.build("lora_a2", {"keep": 1.0})
    one = two = shared()
    for number in range(1, 5):
        ends = [shared(10 * number + k) for k in range(3)]
        one = rolora.apply({}, one, [release(rolora, x, w, number, one) for x, w in zip(ends, WEIGHTS, strict=True)])[1]
        two = whole.apply({}, two, [release(whole, x, w, number, two) for x, w in zip(ends, WEIGHTS, strict=True)])[1]
        assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("round_", [1, 2])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_lora_a2_sends_the_ranks_whose_part_of_the_product_has_changed_the_most_over_all_modules(keep: float, round_: int) -> None:
    start, update = shared(), shared(4)
    sent = release(aggregators.build("lora_a2", {"keep": keep}), update, 1.0, round_).update
    sizes, kept = [], []
    for b, a in NAMES:
        for rank in range(R):
            part = (update[b][:, rank], start[a][rank]) if round_ == 1 else (start[b][:, rank], update[a][rank])
            own = sent[b][:, rank] if round_ == 1 else sent[a][rank]
            sizes.append(float(torch.outer(*part).norm()))
            kept.append(bool(own.any()))
            assert not own.any() or torch.equal(own, part[0] if round_ == 1 else part[1])
    order = sorted(range(len(sizes)), key=lambda k: -sizes[k])
    assert [k for k in range(len(sizes)) if kept[k]] == sorted(order[: math.ceil(keep * 2 * R)])
    assert all(torch.equal(sent[n], update[n]) for n in ALONE if n in sent)


def test_lora_a2s_messages_have_the_same_names_and_shapes_whatever_is_kept() -> None:
    few, all_of_it = (release(aggregators.build("lora_a2", {"keep": k}), shared(4), 1.0).update for k in (0.2, 1.0))
    assert {n: v.shape for n, v in few.items()} == {n: v.shape for n, v in all_of_it.items()}


def test_where_a_user_has_learned_nothing_lora_a2_sends_zeros() -> None:
    sent = release(aggregators.build("lora_a2", {}), {n: torch.zeros_like(v) for n, v in shared().items()}, 1.0)
    assert isinstance(sent, Release) and not any(v.any() for v in sent.update.values())


@pytest.mark.parametrize(("name", "option", "value"), [("fedask", "over", -1), ("lora_a2", "keep", 0.0), ("fedprox", "mu", -0.1)])
def test_an_option_outside_of_its_meaning_is_refused(name: str, option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"aggregator_options.{option} must be between"):
        aggregators.build(name, {option: value})
