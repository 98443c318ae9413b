"""What each of the two guarantees says, in words: every line, table and page about privacy takes them from here."""

from dataclasses import dataclass

from client.data import SOURCES
from configs.scenario import Scenario
from strategies.privacy.joint import everyone_pays
from strategies.privacy.rules import covers_private

SIMULATED = "Simulated: the noise comes from the seed."
EVERYONE = "whoever looks, the server included"
AT_HOME = "nobody: the user's own node adds the noise before anything leaves it"
ONE_SIDED = "with nothing in its place (zero-out)"


@dataclass(frozen=True)
class Words:
    """One guarantee: ``holds`` is (epsilon, delta)-DP in ``unit``, ``against`` whom."""

    title: str
    holds: str
    unit: str
    one: str  # what a unit is in this data
    against: str
    neighbours: str
    trust: str
    uncovered: tuple[str, ...]

    def sentence(self, epsilon: float, delta: float, at_most: bool = False) -> str:
        """The guarantee with its numbers."""
        return f"{self.holds} is {'at most ' if at_most else ''}({epsilon:.3g}, {delta:g})-DP in {self.unit}, {self.against}"


def words(guarantee: str, scenario: Scenario | None) -> Words:
    """The words of "example" or "user"; without a scenario, of a ledger about whose runs no more is known than what it holds."""
    return _of_examples(scenario) if guarantee == "example" else _of_users(scenario)


def listed(names: tuple[str, ...]) -> str:
    """A, b and c."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _of_examples(scenario: Scenario | None) -> Words:
    covered = scenario is None or covers_private(scenario)
    holds = "all that a node lets out of a user, together with the user's private adapter," if covered else (
        "all that a node lets out of a user, but not the user's private adapter,"
    )  # fmt: skip
    uncovered = ("how many examples there are", "scores and controls", "what several examples of a user say together")
    return Words(
        "example level",
        holds if scenario else "what is booked here, of a user,",
        "any one training example of that user",
        _unit(scenario),
        EVERYONE,
        f"a user's data, and the same with one example left out, {ONE_SIDED}",
        AT_HOME,
        uncovered if covered else (*uncovered, "the user's private adapter, against whoever gets hold of it"),
    )


def _of_users(scenario: Scenario | None) -> Words:
    against, trust = _trusted(scenario)
    coins = ("how many users each round had, which the run's files say",) if scenario and everyone_pays(scenario) else ()
    return Words(
        "user level",
        "all that is released, together with all other users' private adapters," if scenario else "what is booked here",
        "the whole data of any one user",
        "all data of one user",
        against,
        f"a federation, and the same with one user left out, {ONE_SIDED}",
        trust,
        (
            "the user's own private adapter, against whoever gets hold of it",
            "scores and controls",
            "a person who is several users",
            *coins,
        ),
    )


def _trusted(scenario: Scenario | None) -> tuple[str, str]:
    """Against whom guarantee U holds, and who is trusted for it."""
    if scenario and scenario.privacy.user.mechanism == "local":
        return EVERYONE, AT_HOME
    if scenario and scenario.privacy.secure:
        told = f"at most {scenario.privacy.masking.colluding:.0%} of a round's nodes tell it what they know"
        return (
            f"{EVERYONE} while it follows the protocol and {told}",
            "the server only to follow the protocol: a round's nodes add the noise together, and it sees no more than their sum",
        )
    return (
        "whoever looks, but for the server",
        "the server: it sees each user's clipped update, or a node's sum of them, and adds the noise before anyone else sees it; and "
        "the user's own node, which clips",
    )


def _unit(scenario: Scenario | None) -> str:
    """The data's privacy unit: "one rating"."""
    return SOURCES[scenario.data.name].unit if scenario and scenario.data.name in SOURCES else "one example"
