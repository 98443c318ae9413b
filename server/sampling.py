"""Who trains in a round, and how often that can be anyone."""

from collections.abc import Sequence
from math import ceil

import torch

from configs.errors import InputError, nearest
from configs.scenario import Scenario
from server.span import before
from strategies.tree import generator


def sample(scenario: Scenario, users: Sequence[str], number: int, secret: int | None = None) -> list[str]:
    """The users of a round, as `Scenario.sampling` says; everyone in the last, private one.

    The choice is keyed by the scenario's seed. ``secret`` takes the seed's place for the coins of Poisson sampling, which amplify
    privacy only where nobody can tell how they fell.
    """
    count, seed = scenario.users_per_round, scenario.seed
    if not 0 < count < len(users) or number - before(scenario) > scenario.rounds:
        return list(users)
    if scenario.sampling == "poisson":
        key = seed if secret is None else secret
        coins = torch.rand(len(users), generator=generator(key, number, "sample"), dtype=torch.float64)
        return [user for user, coin in zip(users, coins.tolist(), strict=True) if coin < count / len(users)]
    if scenario.sampling == "cyclic":
        order, first = _shuffled(len(users), seed, "sample"), (number - 1) % turns(scenario, len(users)) * count
        return sorted(users[i] for i in order[first : first + count])
    return sorted(users[i] for i in _shuffled(len(users), seed, number, "sample")[:count])


def invited(scenario: Scenario, users: Sequence[str]) -> list[str]:
    """The users of a federation without the server's own. Raises `InputError` where one of those is not there, or nobody else is."""
    for user in scenario.root_users:
        if user not in users:
            raise InputError(f"root_users: there is no user '{user}'{nearest(user, users)}")
    found = [user for user in users if user not in scenario.root_users]
    if users and not found:
        raise InputError("root_users names every user there is; leave somebody to weigh")
    return found


def turns(scenario: Scenario, users: int) -> int:
    """Rounds in which cyclic sampling comes once to everyone."""
    return ceil(users / min(scenario.users_per_round or users, users)) if users else 1


def participations(scenario: Scenario, users: int) -> int:
    """In how many of the rounds any one user trains at most."""
    return ceil(scenario.rounds / turns(scenario, users)) if scenario.sampling == "cyclic" else scenario.rounds


def _shuffled(count: int, *key: object) -> list[int]:
    return torch.randperm(count, generator=generator(*key)).tolist()


def dealt(everyone: Sequence[str], users: Sequence[str], nodes: int) -> dict[str, list[str]]:
    """The users of a round by the node that keeps them: every so manieth of all users, as Flower's partitions do."""
    chosen = set(users)
    found = {str(index): [user for user in everyone[index::nodes] if user in chosen] for index in range(nodes)}
    return {name: kept for name, kept in found.items() if kept}
