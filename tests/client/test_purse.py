"""What a node books before it trains anyone: the parts that are covered, in every round, and nobody beyond their budget."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.base import Base
from client.data.types import Dataset, Encoded, Splits
from client.node import Node
from client.private import PrivateStore
from client.purse import Purse
from configs.scenario import Scenario, load
from strategies import schemes
from strategies.base import Release, Task
from strategies.privacy import accounting, budget, rules
from strategies.privacy.events import Event
from strategies.privacy.ledger import Ledger, Spend

Texts = Callable[..., list[Encoded]]
GUARDED = ("privacy=example", "privacy.example.epsilon=3", "rounds=2", "personalize=1", "shared.rank=2", "shared.layers=1",
           "private.rank=2", "private.layers=1", "private.kind=lora", "shared_training.batch=100", "private_training.batch=100",
           "shared_training.early_stopping=false", "private_training.early_stopping=false")  # fmt: skip
SHARED_ONLY = ("privacy.example.noised=[shared]", "private_from=2")


def scenario(*settings: str) -> Scenario:
    """Two guarded rounds and a private one."""
    return load("movielens", [*GUARDED, *settings])


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty one."""
    with Ledger(tmp_path / "ledger.sqlite") as found:
        yield found


@pytest.fixture
def opened(base: Base, texts: Texts, tmp_path: Path, ledger: Ledger) -> Callable[[Scenario], Node]:
    """A maker of nodes with two users, of five examples and of four, on one ledger."""

    def make(asked: Scenario) -> Node:
        splits = {u: Splits(tuple(texts(i, 5 - i)), (), tuple(texts(i + 7, 2))) for i, u in enumerate(("ann", "bob"))}
        dataset = Dataset(splits, {}, "answer", (), (), "text")
        return Node(asked, base, dataset, PrivateStore(tmp_path / "private"), Purse(asked, ledger, "run"))

    return make


def trained(node: Node) -> list[list[Release]]:
    """The releases of all rounds."""
    asked, shared = node.scenario, node.split.shared_start()
    turns = [("shared", "private") if n > asked.private_from else ("shared",) for n in range(1, asked.rounds + 1)]
    tasks = [Task(n, shared, t, participations=asked.rounds) for n, t in enumerate(turns, 1)]
    tasks.append(Task(asked.rounds + 1, shared, ("final",), asked.personalize, asked.rounds))
    with closing(node):
        return [list(node.train(task, node.users())) for task in tasks]


def spends(ledger: Ledger, user: str) -> list[tuple[int, str, float, int]]:
    """(round, part, noise, steps) of all that a user is booked for."""
    rows = ledger._db.execute("SELECT round, what, noise, steps FROM spends WHERE user = ? ORDER BY round, what", (user,))
    return rows.fetchall()


def test_every_part_is_booked_with_the_noise_it_trains_with_and_all_of_it_costs_the_budget(
    opened: Callable[[Scenario], Node], ledger: Ledger
) -> None:
    asked = scenario("shared_training.batch=2")
    assert all(len(releases) == 2 for releases in trained(opened(asked)))
    for user, examples in (("ann", 5), ("bob", 4)):
        z = budget.noise(asked, examples, 2)
        steps = {"shared": 3 if examples == 5 else 2, "private": asked.private_training.epochs, "final": 1}
        steps["shared"] *= asked.shared_training.epochs
        want = [(n, part, z[part], steps[part]) for n in (1, 2) for part in ("private", "shared")] + [(3, "final", z["final"], 1)]
        assert spends(ledger, user) == want
        assert 2.97 < accounting.epsilon(ledger.history(user), 1e-5) <= 3.0


def test_a_private_adapter_that_the_guarantee_leaves_out_trains_after_the_rounds_and_is_not_booked(
    opened: Callable[[Scenario], Node], ledger: Ledger, tmp_path: Path
) -> None:
    asked = scenario(*SHARED_ONLY)
    assert budget.noise(asked, 5, 2)["final"] == 0
    assert all(len(releases) == 2 for releases in trained(opened(asked)))
    for user in ("ann", "bob"):
        assert [(n, part) for n, part, *_ in spends(ledger, user)] == [(1, "shared"), (2, "shared")]
        assert 2.97 < accounting.epsilon(ledger.history(user), 1e-5) <= 3.0
        state = PrivateStore(tmp_path / "private").load(user, 4)
        assert state and any(bool(value.any()) for name, value in state.items() if "lora_B" in name)


def test_what_a_scheme_of_one_adapter_keeps_private_is_planned_and_booked_in_the_last_phase_too(
    opened: Callable[[Scenario], Node], ledger: Ledger
) -> None:
    assert all(len(releases) == 2 for releases in trained(opened(scenario("scheme=fedsa"))))
    assert [(n, part) for n, part, *_ in spends(ledger, "ann")] == [(1, "shared"), (2, "shared"), (3, "final")]
    assert 2.97 < accounting.epsilon(ledger.history("ann"), 1e-5) <= 3.0
    bare = scenario("scheme=fedsa", "privacy.example.noised=[shared]")
    assert any("un-noised private adapter" in problem for problem in rules.problems(bare))
    late = replace(bare, private_from=2)
    assert not list(rules.problems(late)) and not rules.covers_private(late)
    assert not list(rules.problems(replace(bare, personalize=0))) and rules.covers_private(replace(bare, personalize=0))


def test_beside_covered_parts_those_left_out_are_not_booked(ledger: Ledger) -> None:
    asked = scenario("privacy.example.noised=[shared]")
    purse, scheme = Purse(asked, ledger, "run"), schemes.build("dual", {})
    costs = {"ann": {"shared": Event(2.0), "private": Event(0.0)}, "bob": {"private": Event(0.0)}, "cleo": {"shared": Event(0.01)}}
    assert purse.book(1, scheme, costs) == {"ann", "bob"}
    assert ledger.histories() == {"ann": (Event(2.0),)}


def test_without_a_promise_nothing_is_booked_and_everyone_trains(opened: Callable[[Scenario], Node], ledger: Ledger) -> None:
    unclaimed = scenario("privacy.guarantee=unclaimed", "privacy.example.noised=[private]")
    assert all(len(releases) == 2 for releases in trained(opened(unclaimed)))
    assert ledger.histories() == {}


def test_who_has_nothing_left_does_not_train_and_who_has_less_left_trains_with_more_noise(
    opened: Callable[[Scenario], Node], ledger: Ledger
) -> None:
    past = Spend("ann", "earlier", 1, "shared", Event(0.5), True)
    ledger.spend([past])
    ledger.spend([Spend("bob", "earlier", 1, "shared", Event(3.0), True)])
    node = opened(scenario())
    assert node.purse
    assert node.purse.noise("ann", 5, 2) is None
    left = node.purse.noise("bob", 4, 2)
    assert left and all(left[part] > z * 1.1 for part, z in budget.noise(scenario(), 4, 2).items())
    assert [len(releases) for releases in trained(node)] == [1, 1, 1]
    assert ledger.history("ann") == (past.event,)
    assert 2.97 < accounting.epsilon(ledger.history("bob"), 1e-5) <= 3.0


def test_where_nobody_has_anything_left_a_round_is_silent(opened: Callable[[Scenario], Node], ledger: Ledger) -> None:
    ledger.spend(Spend(user, "earlier", 1, "shared", Event(0.5), True) for user in ("ann", "bob"))
    assert trained(opened(scenario())) == [[], [], []]


def test_a_users_noise_stays_as_it_was_planned_whatever_the_run_books_in_between(
    opened: Callable[[Scenario], Node], ledger: Ledger
) -> None:
    asked = scenario()
    before = Purse(asked, ledger, "run").noise("ann", 5, 2)
    trained(opened(asked))
    assert Purse(asked, ledger, "run").noise("ann", 5, 2) == before
    other = Purse(asked, ledger, "another").noise("ann", 5, 2)
    assert before and (other is None or other["shared"] > 10 * before["shared"])


def test_noise_comes_from_the_key_in_a_simulation_and_from_nowhere_twice_elsewhere(ledger: Ledger) -> None:
    shape = torch.Size([8])
    for keyed in (True, False):
        purse = Purse(scenario(), ledger, "run", keyed)
        assert torch.equal(purse.draw(1, "noise")(shape), purse.draw(1, "noise")(shape)) == keyed


def test_a_node_without_a_purse_trains_nobody_whose_examples_are_to_be_protected(opened: Callable[[Scenario], Node]) -> None:
    node = opened(scenario())
    node.purse = None
    with pytest.raises(RuntimeError, match="purse"):
        trained(node)


@pytest.mark.parametrize("name", ["dual", "fedsa", "local_only", "shared_only"])
def test_a_phase_of_no_epochs_is_no_part_and_costs_nothing(opened: Callable[[Scenario], Node], ledger: Ledger, name: str) -> None:
    block = "private" if name == "local_only" else "shared"
    asked = scenario(f"scheme={name}", f"{block}_training.epochs=0", "personalize=0", "private_from=0")
    assert block not in budget.noise(asked, 5, 2)
    node = opened(asked)
    with closing(node):
        releases = list(node.train(Task(1, node.split.shared_start(), participations=2), node.users()))
    assert len(releases) == 2
    assert all(event.noise > 0 or not event.steps for event in ledger.history("ann"))
