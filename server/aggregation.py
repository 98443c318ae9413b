"""From a scenario to the aggregator that the server runs: one of ours, or a strategy of Flower's."""

from configs.scenario import Scenario
from strategies import aggregators, fit, schemes
from strategies.base import Aggregator
from strategies.schemes.ifca import by_cluster


def build(scenario: Scenario) -> Aggregator:
    """Look up the scenario's aggregator. Raises `InputError` for an unknown name or option, and where it would have nothing to do."""
    fit.refuse(scenario)
    if scenario.aggregator.startswith(aggregators.FLOWER):
        from server.flower_aggregator import aggregator  # a run that needs nothing of Flower's does not wait for its import

        return aggregator(scenario.aggregator.removeprefix(aggregators.FLOWER), scenario.aggregator_options)
    found = aggregators.build(scenario.aggregator, scenario.aggregator_options)
    clusters = schemes.of(scenario).clusters
    return by_cluster(found, clusters) if clusters > 1 else found
