"""The report's first line: what is promised, to whom, and the number; and that number for `summary.json`."""

import json
from pathlib import Path
from typing import Any

from configs.scenario import Scenario
from strategies.privacy.accounting import epsilons
from strategies.privacy.ledger import LEDGER, Ledger
from strategies.privacy.rules import covers_private

JOINT = "joint.sqlite"  # in a run's folder: the ledger of guarantee U
NONE = "Privacy: no guarantee is claimed for this run (training was not noised)."
UNCLAIMED = "Privacy: no guarantee is claimed for this run (some of its training was noised, which by itself protects nobody)."
SIMULATED = " Simulated: the noise comes from the seed."
COUNTERS = "the training's counters (tokens, examples, loss, steps, seconds)"

Flower = dict[str, Any] | None  # what `deployed` gives


def deployed(directory: Path) -> Flower:
    """Of a run over Flower: ``simulated``, whether any node was only played, and ``lets``, what nodes let out beside releases."""
    path = directory / "flower.json"
    return {"simulated": True, "lets": [], **json.loads(path.read_text())} if path.exists() else None


def ledgers(scenario: Scenario) -> dict[str, str]:
    """The file of a run's folder that holds what each guarantee, "example" or "user", has cost; {} where none is claimed."""
    privacy = scenario.privacy
    kept = {"example": LEDGER} if privacy.guarantee in ("example", "both") else {}
    return kept | ({"user": JOINT} if privacy.of_users else {})


def spent(scenario: Scenario, directory: Path) -> dict[str, float]:
    """The largest epsilon that any user's ledger shows, by guarantee, "example" or "user"; {} where none is claimed.

    Over Flower the ledgers of guarantee E stay with the nodes: the budget that each of them keeps to.
    """
    privacy, deltas = scenario.privacy, {"example": scenario.privacy.example.delta, "user": scenario.privacy.user.delta}
    kept = {name: directory / file for name, file in ledgers(scenario).items()}
    found = {name: _largest(path, deltas[name], privacy.accountant) for name, path in kept.items() if path.exists()}
    return {"example": privacy.example.epsilon, **found} if "example" in kept and deployed(directory) else found


def promise(scenario: Scenario, found: dict[str, float], flower: Flower = None) -> str:
    """One line for a reader who reads no further; ``found`` is what `spent` gives."""
    if scenario.privacy.guarantee == "unclaimed":
        return UNCLAIMED
    said = [words(scenario, found[name], flower) for name, words in (("example", _of_examples), ("user", _of_users)) if name in found]
    return " ".join(said) + (SIMULATED if _played(flower) else "") if said else NONE


def _of_examples(scenario: Scenario, epsilon: float, flower: Flower) -> str:
    beside = ", together with the user's private adapter," if covers_private(scenario) else ", but not the user's private adapter,"
    return (
        f"Privacy, example level: all that a node lets out of a user{beside} is {'at most ' if flower else ''}({epsilon:.3g}, "
        f"{scenario.privacy.example.delta:g})-DP in any one training example of that user, whoever looks, the server included. "
        f"{_beside(flower)}"
    )


def _beside(flower: Flower) -> str:
    """What guarantee E leaves out, and what it rests on."""
    if flower is None or _played(flower):
        return "Not covered: how many examples there are, and the scores below."
    waived = [said for name, said in (("scores", "the scores below"), ("counters", COUNTERS)) if name in flower["lets"]]
    said = f" Waived in the scenario, and let out without noise: {' and '.join(waived)}." if waived else ""
    return (
        "Each node keeps to that over all its guarded runs, by a ledger of its own. Not covered: how many examples there are, and how "
        f"long a node takes.{said}"
    )


def _of_users(scenario: Scenario, epsilon: float, _flower: Flower) -> str:
    level = scenario.privacy.user
    trusted = "nobody has to be trusted" if level.mechanism == "local" else "the server is trusted to add the noise"
    if scenario.privacy.secure:
        told = f"{scenario.privacy.masking.colluding:.0%} of a round's nodes tell it what they know"
        trusted = f"nodes add the noise, so the server is only trusted to follow the protocol while at most {told}"
    return (
        f"Privacy, user level: the shared adapters of all rounds are ({epsilon:.3g}, {level.delta:g})-DP in all that any one user has; "
        f"{trusted}. Not covered: whoever gets hold of the user's own private adapter, and the scores below."
    )


def _played(flower: Flower) -> bool:
    return flower is None or flower["simulated"]


def _largest(ledger: Path, delta: float, accountant: str) -> float:
    with Ledger(ledger) as opened:
        return max(epsilons(list(opened.histories().values()), delta, accountant), default=0.0)
