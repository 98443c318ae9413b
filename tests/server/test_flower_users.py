"""Guarantee U over Flower: what the server books and noises, what each node clips or noises, and what both do when a run is cut off."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message
from rich.table import Table

from client import answers as client_app
from client import wire
from client.private import folder_name
from client.wire import Order
from configs.errors import InputError
from configs.scenario import scenario_hash
from server import app as server_app
from server import checkpoint
from server.flower_strategy import HomingStrategy
from server.grid import GridRuntime
from simulations.accounts import show
from strategies.base import Release, Task
from strategies.privacy import discrete
from strategies.privacy import noise as noises
from strategies.privacy.events import Event
from strategies.privacy.ledger import JOINT, LEDGER, Ledger, Spend
from strategies.tree import norm
from tests.server.flower_world import KEPT, NODES, PLAYED, RUN, USERS, LocalGrid, distance, fused, scenario_of, shift
from tests.server.test_flower_privacy import SGD, WHOLE, booked, start_of

U = f"privacy=user weights=uniform privacy.user.clip=0.05 {SGD} rounds=2 evaluate_every=0 controls=[shared]"
LOUD = "privacy.user.epsilon=2000"  # hardly any noise: what users send decides where a run ends
MECHANISMS = {
    "gaussian": "",
    "adaptive": "privacy.user.mechanism=adaptive privacy.user.clip=0.5 rounds=3",
    "banded": "privacy.user.mechanism=banded sampling=cyclic users_per_round=3 rounds=3",
    "local": "privacy.user.mechanism=local aggregator=fedavgm",
    "poisson": "sampling=poisson users_per_round=3 personalize=1",
    "both": f"{WHOLE} privacy.guarantee=both users_per_round=5",
    "secure": f"privacy.secure=true privacy.masking.nodes={NODES} privacy.masking.threshold=0.6",
}
pytestmark = pytest.mark.usefixtures("home")


def rows(page: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (page.parent / "rounds.jsonl").read_text().splitlines()]


def first_line(page: Path) -> str:
    return html.unescape(re.sub("<[^>]*>", "", page.read_text().split("<main>")[1]).strip().splitlines()[0])


def trained(grid: LocalGrid) -> list[tuple[Order, Message]]:
    """The orders to train, with what came back."""
    return [(wire.decode_order(m.content), reply) for m, reply in grid.sent if m.metadata.message_type == "train"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_noise_from_the_seed_makes_a_run_over_flower_end_where_the_fused_one_ends(
    world: str, home: Path, tmp_path: Path, mechanism: str
) -> None:
    overrides = f"{world} {U} {LOUD} {MECHANISMS[mechanism]}"
    scenario = scenario_of(overrides)
    here, node = fused(scenario, tmp_path / "fused")
    moved = shift(here.shared, node.split.shared_start())
    node.close()
    page = server_app.run(scenario, LocalGrid(overrides, PLAYED), home / "runs" / "x")
    there = checkpoint.latest(page.parent)
    assert there is not None and there.round == here.round and moved > 2e-3
    assert distance(here.shared, there.shared) <= (0.0 if mechanism == "secure" else 5e-5 * moved)
    assert [(row["users"], row["releases"]) for row in here.rows] == [(row["users"], row["releases"]) for row in there.rows]
    assert float(there.memory.get("privacy/bound", 0.0)) == float(here.memory.get("privacy/bound", 0.0))
    nodes = home / "nodes" / folder_name(str(RUN))
    for name, place in ((JOINT, nodes if mechanism == "local" else page.parent), (LEDGER, nodes)):
        assert (tmp_path / "fused" / name).exists() == (place / name).exists()
        assert not place.joinpath(name).exists() or booked(place / name) == booked(tmp_path / "fused" / name) != {}
    assert not (home / JOINT).exists() and not (home / LEDGER).exists() and "Simulated: the noise comes" in first_line(page)


def test_a_deployed_server_books_for_life_draws_from_the_system_and_says_who_is_trusted(
    world: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noises, "keyed", lambda *_: pytest.fail("noise from the seed"))
    for number, epsilon in ((1, 4), (2, 8)):
        overrides = f"{world} {U} privacy.user.epsilon={epsilon}"
        grid = LocalGrid(overrides, run_id=number)
        page = server_app.run(scenario_of(overrides), grid, home / "runs" / str(number))
        with Ledger(home / JOINT) as ledger:
            assert ledger.runs() == ["1", "2"][:number] and len(ledger.users()) == USERS
            assert all(ledger.rounds(user, str(number)) == 2 for user in ledger.users())
        for order, reply in trained(grid):
            (release,) = wire.decode_releases(reply.content, order.task.shared)
            assert order.task.bound == 0.05 and (release.weight, release.users, release.metrics) == (len(order.users),) * 2 + ({},)
            assert 0.05 < norm(release.update) <= len(order.users) * 0.05
        assert {message.metadata.message_type for message, _ in grid.sent} == {"query", "train"}
        assert 0.98 * epsilon < json.loads((page.parent / "summary.json").read_text())["epsilon"]["user"] <= epsilon
        line = first_line(page)
        assert "whole data of any one user, whoever looks, but for the server" in line and "Simulated" not in line
        assert "The server keeps to that over all its guarded runs" in line and "A user's own node is trusted to hold" in line
        assert not (page.parent / JOINT).exists()
        said, table, *_ = show([str(page.parent)])
        assert said == line and isinstance(table, Table)
    with pytest.raises(InputError, match="no user has anything left"):
        server_app.run(scenario_of(f"{world} {U}"), LocalGrid(f"{world} {U}", run_id=3), home / "runs" / "3")


def test_a_users_node_says_whether_they_are_within_an_adaptive_bound_and_clips_to_where_it_moves(world: str, home: Path) -> None:
    overrides = f"{world} {U} {LOUD} {MECHANISMS['adaptive']}"
    grid = LocalGrid(overrides)
    server_app.run(scenario_of(overrides), grid, home / "runs" / "x")
    bounds, within = [], 0.0
    for order, reply in trained(grid):
        (release,) = wire.decode_releases(reply.content, order.task.shared)
        assert release.metrics.keys() == {"unclipped"} and norm(release.update) <= len(order.users) * order.task.bound * (1 + 1e-6)
        bounds.append(order.task.bound)
        within += release.metrics["unclipped"]
    assert len(set(bounds)) == 3 and bounds[0] == 0.5 and 0 < within < 3 * USERS


def stopped(runtime: Any, last: int) -> None:
    """Let a grid runtime answer no round after this one."""
    real = runtime.train
    runtime.train = lambda task, users: real(task, users) if task.round <= last else (_ for _ in ()).throw(KeyboardInterrupt)


def test_a_run_that_is_cut_off_goes_on_with_its_own_users_and_noise_and_the_round_costs_again(
    world: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, folder, real = f"{world} {U} rounds=3", home / "runs" / "x", server_app.rounds.run
    monkeypatch.setattr(server_app.rounds, "run", lambda s, runtime, *rest: (stopped(runtime, 1), real(s, runtime, *rest))[1])
    with pytest.raises(KeyboardInterrupt):
        server_app.run(scenario_of(overrides), LocalGrid(overrides), folder)
    monkeypatch.setattr(server_app.rounds, "run", real)
    plan = (folder / "plan.json").read_text()
    before = checkpoint.latest(folder)
    fewer = LocalGrid(overrides, [{"users": "u1,u2,u3"}], run_id=RUN + 1)
    with pytest.raises(InputError, match="noise in the run config must be 'system', with which this run began, got 'seed'"):
        server_app.run(scenario_of(overrides), LocalGrid(overrides, PLAYED), folder, noise="seed")
    (home / JOINT).rename(home / "away")
    with pytest.raises(InputError, match=r"joint\.sqlite is missing, which says what this run's rounds cost"):
        server_app.run(scenario_of(overrides), LocalGrid(overrides), folder)
    (home / "away").rename(home / JOINT)
    page = server_app.run(scenario_of(overrides), fewer, folder)
    assert (folder / "plan.json").read_text() == plan and sorted(json.loads(plan)["users"]) == sorted(booked(home / JOINT))
    with Ledger(home / JOINT) as ledger:
        (booking,) = ledger.bookings()
        assert (booking.run, booking.users, booking.rounds, booking.fresh) == (str(RUN), USERS, 2, True)
        assert {sum(event.steps for event in history) for history in ledger.histories().values()} == {3}, "the second round twice"
    found = rows(page)
    assert [(row["users"], row["releases"]) for row in found] == [(USERS, USERS), (USERS, 3), (0, 0)]
    assert found[1]["update_norm"] > 0 == found[2]["update_norm"], "nobody can pay for the third, which moves nothing"
    assert before is not None and before.round == 1 and {m.metadata.group_id for m, _ in fewer.sent} == {"", "2"}


def test_a_user_who_has_spent_all_is_not_asked_and_the_others_go_on(world: str, home: Path) -> None:
    home.mkdir()
    with Ledger(home / JOINT) as ledger:
        ledger.spend([Spend("u3", "last year's", 1, "joint", Event(0.1, 5), False)])
    overrides = f"{world} {U} personalize=1"
    page = server_app.run(scenario_of(overrides), grid := LocalGrid(overrides), home / "runs" / "x")
    assert [(row["users"], row["releases"]) for row in rows(page)[:2]] == [(USERS - 1, USERS - 1)] * 2
    assert booked(home / JOINT)["u3"] == (Event(0.1, 5),)
    asked = [(order.task.round, user) for order, _ in trained(grid) for user in order.users]
    assert [number for number, user in asked if user == "u3"] == [3], "to train alone costs nothing"


def test_who_is_in_a_poisson_round_is_drawn_by_the_system_everyone_pays_and_an_empty_round_is_noise(
    world: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = f"{world} {U} sampling=poisson users_per_round=1 rounds=4"
    asked = set()
    for run in range(2):
        coins = iter(range(1000 * run, 1000 * run + 99))
        monkeypatch.setattr("server.joint.secrets.randbits", lambda _bits, coins=coins: next(coins))
        monkeypatch.setenv("HOMING_HOME", str(home / str(run)))
        page = server_app.run(scenario_of(overrides), grid := LocalGrid(overrides), home / str(run) / "runs" / "x")
        asked.add(tuple(tuple(sorted(order.users)) for order, _ in trained(grid)))
        assert all(row["update_norm"] > 0 for row in rows(page))
        assert set(booked(home / str(run) / JOINT).values()) == {(booked(home / str(run) / JOINT)["u1"][0],)}
    assert len(asked) == 2 and 0 in {row["users"] for run in range(2) for row in rows(home / str(run) / "runs" / "x" / "x")}


def test_users_who_noise_their_own_releases_pay_at_home_and_send_noise_where_they_may_not_train(world: str, home: Path) -> None:
    home.mkdir()
    with Ledger(home / LEDGER) as ledger:
        ledger.spend([Spend("u3", "last year's", 1, "shared", Event(0.1, 5), False)])
    with Ledger(home / JOINT) as ledger:
        ledger.spend([Spend("u4", "last year's", 1, "joint", Event(0.1, 5), False)])
    overrides = f"{world} {U} {WHOLE} privacy.guarantee=both privacy.user.mechanism=local"
    page = server_app.run(scenario_of(overrides), grid := LocalGrid(overrides), home / "runs" / "x")
    assert [(row["users"], row["releases"]) for row in rows(page)] == [(USERS, USERS - 1)] * 2
    found = booked(home / JOINT)
    assert found.pop("u4") == (Event(0.1, 5),)
    assert set(found.values()) == {(Event(found["u1"][0].noise, 2),)} and len(found) == USERS - 1
    with Ledger(home / JOINT) as ledger:
        assert {booking.run: booking.fresh for booking in ledger.bookings()} == {"last year's": True, str(RUN): True}
    assert booked(home / LEDGER)["u3"] == (Event(0.1, 5),) and "u4" not in booked(home / LEDGER)
    assert not (page.parent / JOINT).exists() and not (page.parent / "plan.json").exists()
    size = sum(value.numel() for value in start_of(overrides).values())
    for order, reply in trained(grid):
        (release,) = wire.decode_releases(reply.content, order.task.shared)
        want = found["u1"][0].noise * 0.05 * (size * release.users) ** 0.5
        assert release.users == len(set(order.users) - {"u4"}) and norm(release.update) == pytest.approx(want, rel=0.25)
    line = first_line(page)
    assert list(show([str(page.parent)])) == [line]
    assert line.count("Each node keeps to that over all its guarded runs") == 2 and "the server included" in line
    assert json.loads((page.parent / "summary.json").read_text())["epsilon"] == {"example": 6.0, "user": 8.0}


def test_a_node_is_held_to_no_other_bound_than_the_scenarios_and_a_server_takes_no_sum_beyond_it(
    world: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = f"{world} {U}"
    runtime, start = GridRuntime(LocalGrid(overrides), "x"), start_of(overrides)
    for how, bounds in (("", (0.0, 0.1, 0.049)), ("privacy.user.mechanism=adaptive", (0.0, -1.0, float("inf"), float("nan")))):
        other = GridRuntime(grid := LocalGrid(f"{overrides} {how}"), "x")
        for bound in bounds:
            assert list(other.train(Task(1, start, bound=bound), other.users())) == []
        assert other.failed.total() == NODES * len(bounds) and not booked_at(home)
        assert all(reply.has_error() for message, reply in grid.sent if message.metadata.message_type == "train")
    assert [r.users for r in runtime.train(Task(1, start, bound=0.05), runtime.users())] and not runtime.failed

    def honest_but_one(self: Any, task: Task, users: Any) -> Iterator[Release]:
        for release in real(self, task, users):
            yield Release({n: v * 30 for n, v in release.update.items()}, 1.0) if "u1" in users else release

    real = client_app.Node.train
    monkeypatch.setattr(client_app.Node, "train", honest_but_one)
    page = server_app.run(scenario_of(overrides), LocalGrid(overrides), home / "runs" / "x")
    for row in rows(page):
        assert list(row["dropped"]) == ["norm too large"] and row["releases"] + sum(row["dropped"].values()) == USERS


def booked_at(home: Path) -> list[Path]:
    return [path for path in home.rglob("*.sqlite") if booked(path)]


def test_under_masks_nodes_noise_the_sum_and_the_server_books_it(world: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_app.secure, "seeded", lambda *_: pytest.fail("noise from the seed"))
    drawn: list[int] = []
    real = discrete.gaussian
    monkeypatch.setattr(discrete, "gaussian", lambda count, sigma, bits=None: (drawn.append(sigma), real(count, sigma, bits))[1])
    overrides = f"{world} {U} {MECHANISMS['secure']}"
    page = server_app.run(scenario_of(overrides), grid := LocalGrid(overrides), home / "runs" / "x")
    assert len(drawn) == 2 * NODES and all(row["releases"] == USERS and row["update_norm"] > 0 for row in rows(page))
    (history,) = set(booked(home / JOINT).values())
    assert [(event.kind, event.steps) for event in history] == [("concentrated", 2)]
    assert "the server included while it follows the protocol" in first_line(page)
    assert all(set(reply.content) == {"masking"} for message, reply in grid.sent if "secure" in message.metadata.message_type)


def test_a_strategy_of_flowers_kind_runs_where_users_noise_their_own_and_refuses_what_needs_a_ledger(world: str, home: Path) -> None:
    with pytest.raises(InputError, match="HomingStrategy has no ledger"):
        HomingStrategy(scenario_of(f"{world} {U}"))
    overrides = f"{world} {U} privacy.user.mechanism=local"
    HomingStrategy(scenario_of(overrides)).start(LocalGrid(overrides), ArrayRecord(start_of(overrides)), 2)
    assert len(booked(home / JOINT)) == USERS


@pytest.mark.parametrize(("noise", "kept", "seeded"), [("", KEPT, False), ("", [*PLAYED[:2], KEPT[2]], False), ("", PLAYED, True),
                                                       ("seed", KEPT, True), ("system", PLAYED, False)])  # fmt: skip
def test_a_servers_noise_is_the_seeds_only_where_it_or_every_node_says_so(
    world: str, home: Path, noise: str, kept: list[dict[str, Any]], seeded: bool
) -> None:
    overrides = f"{world} {U} rounds=1"
    page = server_app.run(scenario_of(overrides), LocalGrid(overrides, kept), home / "runs" / "x", noise=noise)
    place = page.parent if seeded else home
    with Ledger(place / JOINT) as ledger:
        assert ledger.runs() == [scenario_hash(scenario_of(overrides)) if seeded else str(RUN)]
        assert [booking.fresh for booking in ledger.bookings()] == [not seeded]
    assert [path.parent for path in home.rglob(JOINT)] == [place]
    assert ("Simulated" in first_line(page)) == (seeded or any("noise" in said for said in kept))
