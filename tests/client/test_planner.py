"""Users side by side, inside a budget, with nobody left out and nobody twice."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.adapters.layout import layout
from client.base import Base
from client.data.types import Encoded
from client.planner import cohorts, step_passes, token_budget
from client.tower import Tower
from configs.scenario import Adapter, Engine

Texts = Callable[..., list[Encoded]]


@pytest.fixture
def tower(base: Base) -> Iterator[Tower]:
    """Two layers of LoRA: every token of a text is a position."""
    found = Tower(base, (layout("shared", Adapter(rank=2), base, 0),), Engine())
    yield found
    found.close()


WORK = st.lists(st.lists(st.integers(2, 20), max_size=6), min_size=1, max_size=6)
BOUND = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encoded(lengths: list[list[int]]) -> list[list[Encoded]]:
    """Users' examples of the given lengths."""
    return [[Encoded(torch.zeros(n, dtype=torch.long), 1, -1, 0) for n in user] for user in lengths]


@BOUND
@given(lengths=WORK, batch=st.integers(1, 4), budget=st.integers(1, 200))
def test_every_user_is_in_one_cohort_and_wide_cohorts_stay_in_budget(
    tower: Tower, lengths: list[list[int]], batch: int, budget: int
) -> None:
    groups = cohorts(encoded(lengths), batch, tower, Engine(tokens_per_pass=budget), 10)
    assert sorted(k for group in groups for k in group) == list(range(len(lengths)))
    for group in groups:
        steps = [-(-len(lengths[k]) // batch) for k in group]
        assert steps == sorted(steps, reverse=True), "those still training are the first rows"
        longest = max((n for k in group for n in lengths[k]), default=1)
        rows = max(min(batch, len(lengths[k])) for k in group)
        assert len(group) == 1 or len(group) * rows * longest <= budget


@BOUND
@given(lengths=WORK, budget=st.integers(1, 200))
def test_passes_hold_every_example_once_and_weights_add_up_to_one_per_user(tower: Tower, lengths: list[list[int]], budget: int) -> None:
    batches = encoded([user for user in lengths if user] or [[3]])
    met: list[list[int]] = [[] for _ in batches]
    weight = [0.0] * len(batches)
    for part in step_passes(batches, tower, budget):
        height = len(part.examples) // part.users
        assert part.users == len(batches)
        longest = max(len(e.ids) for b in batches for e in b)
        assert height == 1 or height * part.users * longest <= budget
        for row, (example, source) in enumerate(zip(part.examples, part.source_N, strict=True)):
            user = row // height
            weight[user] += float(part.weight_N[row])
            if source >= 0:
                met[user].append(source)
                assert example is batches[user][source]
            else:
                assert float(part.weight_N[row]) == 0.0
    assert met == [list(range(len(b))) for b in batches]
    assert weight == pytest.approx([1.0] * len(batches), abs=1e-5)


def test_a_bound_on_memory_lowers_the_budget_and_never_below_one(tower: Tower) -> None:
    assert token_budget(tower, Engine(tokens_per_pass=500), 10, 2) == 500
    small = token_budget(tower, Engine(tokens_per_pass=500, memory_mb=1), 10, 2)
    assert 1 <= small < 500
    assert token_budget(tower, Engine(memory_mb=1), 10**9, 1) == 1
    assert token_budget(tower, Engine(tokens_per_pass=5, memory_mb=1000), 10, 2) == 5


def test_a_choice_after_cached_keys_counts_one_position(base: Base, texts: Texts) -> None:
    tower = Tower(base, (layout("private", Adapter(targets=("up_proj",), layers=1), base, 0),), Engine())
    tower.close()
    example = texts(0, 1, task="choice", length=12)[0]
    assert tower.way == "keys"
    assert tower.positions(example) == 1
    assert tower.positions(Encoded(example.ids, 10, -1, 0)) == 3
