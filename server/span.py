"""Which rounds a run has. Round numbers go on over a life: period t has the rounds after those of the t - 1 periods before it."""

from configs.scenario import Scenario
from strategies import schemes
from strategies.base import personal


def last_round(scenario: Scenario) -> int:
    """The federation's rounds, and one more in which everyone trains only what is private, if anything is and that is asked for."""
    return scenario.rounds + (scenario.personalize > 0 and personal(schemes.of(scenario)))


def before(scenario: Scenario) -> int:
    """The rounds of all earlier periods of a life; 0 where there is none."""
    return (scenario.life.period - 1) * last_round(scenario) if scenario.life.period > 1 else 0
