"""A day of very many devices, held against what can be said by hand."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from simulations.scale import day
from simulations.scale.day import Assumed, Class
from tests.simulations.command import call

ONE = Assumed(devices=10_000, goal=10, over=1.0, drop=0.0, swing=1.0, classes=(Class("any", 1.0, 100.0, 80.0, 80.0, 0.5),))


def test_availability_goes_round_with_the_day_and_swings_as_much_as_it_is_said_to() -> None:
    here = replace(ONE, swing=4.0, zones=((0.0, 1.0),))
    hours = [float(day.available(here, 3600.0 * h)[0]) for h in range(24)]
    assert hours.index(max(hours)) == 3 and max(hours) == pytest.approx(5_000) and max(hours) / min(hours) == pytest.approx(4)
    east = [float(day.available(replace(here, zones=((8.0, 1.0),)), 3600.0 * h)[0]) for h in range(24)]
    assert east == pytest.approx(hours[8:] + hours[:8])


def test_a_round_takes_what_its_parts_take_and_a_day_holds_as_many_as_fit() -> None:
    quiet = np.random.default_rng(0)
    seconds = day.answers(ONE, np.zeros(100_000, dtype=np.int64), quiet)
    parts = 20.0 + 20_000 / 100 + 2 * 32 / 80  # start, training, four megabytes each way
    assert float(np.median(seconds)) == pytest.approx(parts, rel=0.01)
    found = day.rounds(ONE)
    assert all(r.asked == r.answered == 10 and r.there > 4_000 for r in found)
    assert sum(r.seconds + ONE.between for r in found[:-1]) < day.DAY <= sum(r.seconds + ONE.between for r in found)
    assert all(b.began == pytest.approx(a.began + a.seconds + ONE.between) for a, b in itertools.pairwise(found))


def test_who_drops_out_never_answers_and_a_round_without_enough_ends_at_its_deadline() -> None:
    lost = day.rounds(replace(ONE, drop=1.0, deadline=600.0))
    assert all((r.answered, r.seconds) == (0, 600.0) for r in lost)
    few = day.rounds(replace(ONE, devices=10, goal=10, deadline=3_000.0))
    assert all(r.asked == r.there <= 10 for r in few if r.there < 10) and any(r.seconds == 3_000.0 for r in few)
    more = [day.totals(a, day.rounds(a))["median round, s"] for a in (replace(ONE, drop=0.08, over=o) for o in (1.1, 1.5))]
    assert more[1] < more[0], "asking more than are needed cuts off the slowest"


def test_bytes_and_memory_follow_from_the_rounds() -> None:
    found = day.rounds(ONE)
    said = day.totals(ONE, found)
    assert said["GB up a day"] == pytest.approx(len(found) * 10 * 4e6 / 1e9) == said["GB down a day"]
    half = day.totals(replace(ONE, width=2), found)
    assert half["GB up a day"] == said["GB up a day"] / 2 and half["MB at the server"] < said["MB at the server"]
    assert day.memory(replace(ONE, goal=1_000)) == day.memory(ONE), "a stream: memory does not grow with who answers"
    assert said["times a device is asked a day"] * said["days until everybody was asked once"] == pytest.approx(1)
    assert not math.isinf(said["slowest round, s"])


def test_the_command_prints_what_it_assumes_and_refuses_what_cannot_be() -> None:
    answer = call("scale", "--devices", "50000", "--goal", "50")
    assert answer.code == 0 and "phone" in answer.out and "rounds a day" in answer.out and "1.3" in answer.out
    assert "--goal must be at most --devices = 10" in call("scale", "--devices", "10", "--goal", "11").err
