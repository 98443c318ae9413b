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


def ledgers(scenario: Scenario) -> dict[str, str]:
    """The file of a run's folder that holds what each guarantee, "example" or "user", has cost; {} where none is claimed."""
    privacy = scenario.privacy
    kept = {"example": LEDGER} if privacy.guarantee in ("example", "both") else {}
    return kept | ({"user": JOINT} if privacy.of_users else {})


def spent(scenario: Scenario, directory: Path) -> dict[str, float]:
    """The largest epsilon that any user's ledger shows, by guarantee; {} where none is claimed."""
    privacy, deltas = scenario.privacy, {"example": scenario.privacy.example.delta, "user": scenario.privacy.user.delta}
    kept = {name: directory / file for name, file in ledgers(scenario).items()}
    return {name: _largest(path, deltas[name], privacy.accountant) for name, path in kept.items() if path.exists()}


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
