"""The report's first line: what is promised, to whom, and the number; and that number for `summary.json`."""

from pathlib import Path

from configs.scenario import Scenario
from strategies.privacy.accounting import epsilons
from strategies.privacy.ledger import Ledger
from strategies.privacy.rules import covers_private

LEDGER = "ledger.sqlite"  # in a run's folder
NONE = "Privacy: no guarantee is claimed for this run (training was not noised)."
UNCLAIMED = "Privacy: no guarantee is claimed for this run (some of its training was noised, which by itself protects nobody)."


def spent(scenario: Scenario, directory: Path) -> dict[str, float]:
    """The largest epsilon that any user's ledger shows, by guarantee; {} where none is claimed."""
    if scenario.privacy.guarantee != "example" or not (directory / LEDGER).exists():
        return {}
    with Ledger(directory / LEDGER) as ledger:
        histories = list(ledger.histories().values())
    return {"example": max(epsilons(histories, scenario.privacy.example.delta, scenario.privacy.accountant), default=0.0)}


def promise(scenario: Scenario, found: dict[str, float]) -> str:
    """One line for a reader who reads no further; ``found`` is what `spent` gives."""
    if scenario.privacy.guarantee == "unclaimed":
        return UNCLAIMED
    if "example" not in found:
        return NONE
    beside = ", together with the user's private adapter," if covers_private(scenario) else ", but not the user's private adapter,"
    return (
        f"Privacy, example level: all that a node lets out of a user{beside} is ({found['example']:.3g}, "
        f"{scenario.privacy.example.delta:g})-DP in any one training example of that user, whoever looks, the server included. Not "
        "covered: how many examples there are, and the scores below. Simulated: the noise comes from the seed."
    )
