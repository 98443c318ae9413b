"""What a node does to users' releases before they leave."""

from dataclasses import replace

import pytest
import torch

from client import sending
from configs.scenario import Scenario
from configs.wire import Wire
from strategies.base import Release, Task

NAME = "x.lora_A.weight"
TASK = Task(1, {NAME: torch.zeros(1, 2)})


@pytest.mark.parametrize("feedback", [True, False])
def test_what_earlier_rounds_left_out_is_added_before_the_largest_are_chosen(feedback: bool) -> None:
    scenario = replace(Scenario(), wire=Wire(kind="topk", keep=0.5, feedback=feedback))
    update, owed = {NAME: torch.tensor([[2.0, 1.0]])}, {NAME: torch.tensor([[0.5, 4.0]])}
    sent, left = sending.thinned(scenario, None, TASK, "ann", Release(update, 1.0), owed if feedback else {})
    assert sent.update[NAME].tolist() == ([[0.0, 5.0]] if feedback else [[2.0, 0.0]])
    assert {name: value.tolist() for name, value in left.items()} == ({NAME: [[2.5, 0.0]]} if feedback else {})


def test_a_sum_leaves_out_what_is_not_in_order() -> None:
    good = Release({NAME: torch.tensor([[1.0, 2.0]])}, 2.0)
    huge = torch.tensor([[1e9, 0.0]])
    for bad in (torch.tensor([[torch.nan, 0.0]]), huge, torch.zeros(3, 2)):
        (found,) = sending.summed(Scenario(), TASK, [good, Release({NAME: bad}, 1.0)], ["ann", "bob"])
        assert (found.users, found.weight) == (1, 2.0) and torch.equal(found.update[NAME], good.update[NAME])
    assert sending.summed(Scenario(), TASK, [Release({NAME: huge}, 1.0)], ["bob"]) == []
