"""The report's first line: what is promised, to whom, and the number; and that number for `summary.json`."""

from pathlib import Path

from configs.scenario import Scenario
from strategies.privacy.accounting import epsilons
from strategies.privacy.ledger import Ledger
from strategies.privacy.rules import covers_private

LEDGER, JOINT = "ledger.sqlite", "joint.sqlite"  # in a run's folder: of guarantee E and of guarantee U
NONE = "Privacy: no guarantee is claimed for this run (training was not noised)."
UNCLAIMED = "Privacy: no guarantee is claimed for this run (some of its training was noised, which by itself protects nobody)."
SIMULATED = " Simulated: the noise comes from the seed."


def spent(scenario: Scenario, directory: Path) -> dict[str, float]:
    """The largest epsilon that any user's ledger shows, by guarantee, "example" or "user"; {} where none is claimed."""
    privacy, found = scenario.privacy, {}
    if privacy.guarantee in ("example", "both") and (directory / LEDGER).exists():
        found["example"] = _largest(directory / LEDGER, privacy.example.delta, privacy.accountant)
    if privacy.of_users and (directory / JOINT).exists():
        found["user"] = _largest(directory / JOINT, privacy.user.delta, privacy.accountant)
    return found


def promise(scenario: Scenario, found: dict[str, float]) -> str:
    """One line for a reader who reads no further; ``found`` is what `spent` gives."""
    if scenario.privacy.guarantee == "unclaimed":
        return UNCLAIMED
    said = [words(scenario, found[name]) for name, words in (("example", _of_examples), ("user", _of_users)) if name in found]
    return " ".join(said) + SIMULATED if said else NONE


def _of_examples(scenario: Scenario, epsilon: float) -> str:
    beside = ", together with the user's private adapter," if covers_private(scenario) else ", but not the user's private adapter,"
    return (
        f"Privacy, example level: all that a node lets out of a user{beside} is ({epsilon:.3g}, "
        f"{scenario.privacy.example.delta:g})-DP in any one training example of that user, whoever looks, the server included. Not "
        "covered: how many examples there are, and the scores below."
    )


def _of_users(scenario: Scenario, epsilon: float) -> str:
    level = scenario.privacy.user
    trusted = "nobody has to be trusted" if level.mechanism == "local" else "the server is trusted to add the noise"
    return (
        f"Privacy, user level: the shared adapters of all rounds are ({epsilon:.3g}, {level.delta:g})-DP in all that any one user has; "
        f"{trusted}. Not covered: whoever gets hold of the user's own private adapter, and the scores below."
    )


def _largest(ledger: Path, delta: float, accountant: str) -> float:
    with Ledger(ledger) as opened:
        return max(epsilons(list(opened.histories().values()), delta, accountant), default=0.0)
