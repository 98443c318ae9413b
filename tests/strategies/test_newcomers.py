"""Ways to begin with a new user: each is what its formula says, and none is let near what may not be released."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from configs.scenario import Adapter, Privacy, Scenario
from strategies import newcomers
from strategies.newcomers import NEWCOMERS
from strategies.newcomers.contract import Asked, Verdict
from strategies.newcomers.hypernet import left_out
from strategies.newcomers.nearest import SHARES, clusters, weights
from strategies.tree import State, generator

K, E = 12, 5
CORE = Scenario(privacy=Privacy("example"), private=Adapter(kind="core", rank=3))


def drawn(*shape: int, key: object = 0) -> Tensor:
    return torch.randn(shape, generator=generator("newcomers", key))


@pytest.fixture
def released() -> State:
    return {"private/a.core.weight": drawn(K, 3, 3), "private/b.core.weight": drawn(K, 2, 2, key=1)}


@pytest.fixture
def start(released: State) -> State:
    return {name: torch.zeros_like(value[0]) for name, value in released.items()}


def asked(losses_J: Tensor | None = None, noise: float = 0.0, profile_E: Tensor | None = None) -> Asked:
    def judge(candidates: State) -> Verdict:
        count = len(next(iter(candidates.values())))
        return Verdict(torch.zeros(count) if losses_J is None else losses_J, noise)

    return Asked(judge, profile_E)


def mean_of(released: State) -> State:
    return {name: value.mean(0) for name, value in released.items()}


def close(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NEWCOMERS)
def test_every_way_gives_an_adapter_like_the_start_and_leaves_what_it_is_given(name: str, released: State, start: State) -> None:
    way, profiles_KE = newcomers.build(name, {}), drawn(K, E, key=2)
    before = {n: v.clone() for n, v in released.items()}
    found = way.begin(way.prepare(start, released, profiles_KE), asked(profile_E=profiles_KE[0]))
    assert {n: (v.shape, v.dtype) for n, v in found.items()} == {n: (v.shape, v.dtype) for n, v in start.items()}
    assert all(torch.equal(v, before[n]) for n, v in released.items()) and all(not v.any() for v in start.values())


@pytest.mark.parametrize(("name", "options"), [("mean", {}), ("nearest", {}), ("nearest", {"candidates": 0.0})])
def test_without_examples_the_start_is_the_mean_of_what_was_released(
    name: str, options: dict[str, float], released: State, start: State
) -> None:
    way = newcomers.build(name, options)
    close(way.begin(way.prepare(start, released, torch.zeros(K, 0)), asked()), mean_of(released))


def test_who_fits_best_by_far_is_the_start(released: State, start: State) -> None:
    way = newcomers.build("nearest", {"candidates": 0})
    sent = way.prepare(start, released, torch.zeros(K, 0))
    losses_J = torch.full((K,), 99.0)
    losses_J[4] = 0.0
    close(way.begin(sent, asked(losses_J)), {name: sent[name][4] for name in released})


def test_a_mixture_is_the_posterior_and_noise_takes_from_it_what_cannot_be_told() -> None:
    shares_J, losses_J = torch.tensor([0.5, 0.2, 0.2, 0.1]), torch.tensor([1.0, 0.0, 2.0, 0.5])
    exact = shares_J * (-losses_J).exp()
    torch.testing.assert_close(weights(shares_J, Verdict(losses_J, 0.0)).float(), exact / exact.sum())
    torch.testing.assert_close(weights(shares_J, Verdict(losses_J + 7, 0.0)).float(), exact / exact.sum())  # differences alone count
    torch.testing.assert_close(weights(shares_J, Verdict(losses_J, 5.0)).float(), shares_J)
    c = 1 - 0.5**2 / float((losses_J - losses_J.mean()).square().sum())
    some = shares_J * (-c * losses_J).exp()
    torch.testing.assert_close(weights(shares_J, Verdict(losses_J, 0.5)).float(), some / some.sum())


def test_clusters_are_the_groups_that_are_there_and_none_is_empty() -> None:
    truth_K = torch.arange(30) % 3
    x_KP = 10 * drawn(3, 6)[truth_K].double() + 0.1 * drawn(30, 6, key=1).double()
    found_K = clusters(x_KP, 3)
    assert {(int(a), int(b)) for a, b in zip(found_K, truth_K, strict=True)}.__len__() == 3
    assert clusters(x_KP, 7).unique().tolist() == list(range(int(clusters(x_KP, 7).max()) + 1))
    assert clusters(torch.ones(4, 2).double(), 3).tolist() == [0] * 4  # fewer distinct rows than clusters


def test_shares_are_those_of_users_and_centres_are_means(released: State, start: State) -> None:
    sent = newcomers.build("nearest", {"candidates": 3}).prepare(start, released, torch.zeros(K, 0))
    assert len(sent[SHARES]) == 3 and float(sent[SHARES].sum()) == pytest.approx(1)
    close({n: torch.tensordot(sent[SHARES], sent[n], 1) for n in released}, mean_of(released))


def test_a_hypernetwork_finds_a_line_and_where_there_is_none_the_mean(released: State, start: State) -> None:
    way, x_KE = newcomers.build("hypernet", {}), drawn(60, E, key=3) * 4 + 1
    line = {n: v.mean(0) + torch.tensordot(x_KE, drawn(E, *v.shape[1:], key=n), 1) for n, v in released.items()}
    new_E = drawn(E, key=4)
    wanted = {n: released[n].mean(0) + torch.tensordot(new_E, drawn(E, *v.shape[1:], key=n), 1) for n, v in released.items()}
    found = way.begin(way.prepare(start, line, x_KE), asked(profile_E=new_E))
    assert all(float((found[n] - wanted[n]).norm() / wanted[n].norm()) < 0.02 for n in wanted)
    noise = {n: drawn(60, *v.shape[1:], key=(n, "noise")) for n, v in released.items()}
    sent = way.prepare(start, noise, torch.ones(60, E))  # everyone says the same
    close(way.begin(sent, asked(profile_E=torch.ones(E))), mean_of(noise))


def test_the_error_on_users_left_out_is_that_of_leaving_them_out() -> None:
    x_KE, y_KP, r = drawn(9, 3).double(), drawn(9, 2, key=1).double(), 0.7
    x_KE, y_KP = x_KE - x_KE.mean(0), y_KP - y_KP.mean(0)
    value_K, vector_KK = torch.linalg.eigh(x_KE @ x_KE.T)
    value_K = value_K.clamp(min=0)
    found = left_out(value_K / (value_K + r), vector_KK, y_KP, vector_KK.T @ y_KP)
    slow = 0.0
    for k in range(9):
        rest = [i for i in range(9) if i != k]
        x, y = x_KE[rest] - x_KE[rest].mean(0), y_KP[rest] - y_KP[rest].mean(0)
        slope = torch.linalg.solve(x.T @ x + r * torch.eye(3).double(), x.T @ y)
        slow += float((y_KP[k] - y_KP[rest].mean(0) - (x_KE[k] - x_KE[rest].mean(0)) @ slope).square().sum())
    assert float(found) == pytest.approx(slow)


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize("name", [name for name, make in NEWCOMERS.items() if make().releases])
@pytest.mark.parametrize("guarantee", get_args(Privacy.__dataclass_fields__["guarantee"].type) or ("off", "user", "both", "unclaimed"))
def test_private_adapters_are_sent_on_under_guarantee_e_alone(name: str, guarantee: str) -> None:
    scenario = replace(CORE, privacy=replace(CORE.privacy, guarantee=guarantee))  # type: ignore[arg-type]
    newcomers.refuse(scenario, "shared", newcomers.build("shared", {}))
    if guarantee == "example":
        newcomers.refuse(scenario, name, newcomers.build(name, {}))
        return
    with pytest.raises(InputError, match=f"--ways {name} .*use --ways shared"):
        newcomers.refuse(scenario, name, newcomers.build(name, {}))


def test_what_cannot_be_added_and_what_is_no_option_is_refused() -> None:
    lora = replace(CORE, private=Adapter())
    with pytest.raises(InputError, match=r"private\.kind='lora' does not add"):
        newcomers.refuse(lora, "mean", newcomers.build("mean", {}))
    newcomers.refuse(lora, "shared", newcomers.build("shared", {}))
    for name, options, said in (("nearst", {}, "'nearest'"), ("nearest", {"k": 1}, "option of nearest"),
                                ("nearest", {"share": 1}, "below 1"), ("nearest", {"candidates": -1}, "a count"),
                                ("nearest", {"bound": 0}, "above 0")):  # fmt: skip
        with pytest.raises(InputError, match=said):
            newcomers.build(name, options)


def test_the_page_names_every_way_and_every_option() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "lifelong.md").read_text().partition("## A new user")[2]
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, make in NEWCOMERS.items():
        for option in inspect.signature(make).parameters.values():
            assert f"`{option.name} = {option.default:g}`" in rows[name], (name, option.name)
