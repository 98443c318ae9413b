"""All attacks on one world: attacks.json, and a table for people."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from configs.scenario import Scenario
from simulations.attacks.membership import membership
from simulations.attacks.reconstruction import choices, tokens
from simulations.attacks.shared_path import shared_path
from simulations.training import World
from strategies.files import write_text

EPSILONS = (0.0, 8.0, 2.0)  # of guarantee E; 0: without noise
CLAIMED, TRIALS = 1.0, 200  # of the attack through the block that is not noised
NOISED = {
    "private": "only the private adapter noised",
    "shared": "only the shared adapter noised",
    "both": "both noised: E",
    "release": "both noised: E, the release",
}
USERS = 10  # that each attack is tried on, at most
Figures = dict[str, dict[str, dict[str, Any]]]  # attack -> what it was tried on -> figures


def run(scenario: Scenario, world: World, done: Callable[[Figures], None] = lambda _: None) -> Figures:
    """Every attack, without noise and under guarantee E. ``done`` is given what there is after each."""
    found: Figures = {}

    def put(attack: str, on: str, figures: Any) -> None:
        found.setdefault(attack, {})[on] = asdict(figures)
        done(found)

    for epsilon, figures in zip(EPSILONS, choices(scenario, world, EPSILONS, USERS), strict=True):
        put("examples", _on(epsilon), figures)
    for epsilon in EPSILONS:
        put("tokens", _on(epsilon), tokens(scenario, world, epsilon, USERS))
    for epsilon in EPSILONS:
        put("membership", _on(epsilon), membership(scenario, world, epsilon, USERS))
    for noised, said in NOISED.items():
        put("one example", said, shared_path(scenario, world, noised, CLAIMED, TRIALS))
    return found


def table(found: Figures) -> Table:
    """One row for each attack and what it was tried on."""
    made = Table(box=SIMPLE, title="What attacks read")
    for column in ("attack", "on", "read", "by guessing"):
        made.add_column(column)
    for attack, tried in found.items():
        for on, figures in tried.items():
            made.add_row(attack, on, *_said(attack, figures))
    return made


def write(found: Figures, path: Path) -> None:
    """Write the figures as JSON."""
    write_text(path, json.dumps(found, indent=2) + "\n")


def _on(epsilon: float) -> str:
    return f"E, epsilon {epsilon:g}" if epsilon else "no noise"


def _said(attack: str, x: dict[str, Any]) -> tuple[str, str]:
    if attack == "examples":
        return f"{x['found']:.1%} of {x['examples']} examples, {x['answers']:.1%} of answers", f"{x['blind']:.1%}, {x['usual']:.1%}"
    if attack == "tokens":
        return f"{x['found']:.1%} of {x['tokens']} tokens in {x['texts']} texts", f"{x['blind']:.2%}"
    if attack == "membership":
        return f"AUC {x['auc']:.3f}; {x['caught']:.1%} of members at 1 % false", "AUC 0.500; 1.0%"
    return f"AUC {x['auc']:.3f}; epsilon above {x['bound']:.2f}, where {x['claimed']:g} was paid", "AUC 0.500"
