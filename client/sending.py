"""What becomes of users' releases between their training and a message: `strategies.compressors`, and one sum where that will do."""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from client.own_noise import OwnNoise, clipped
from client.private import PrivateStore
from client.store.manifest import Origin
from configs.scenario import Scenario
from strategies import compressors, riding
from strategies.admission import refusal
from strategies.base import Release, Task
from strategies.sums import total
from strategies.tree import State, generator

if typing.TYPE_CHECKING:
    from client.node import Node

OWED = "owed"  # the kind of a user's state in the store that holds what was left out of releases


def remembers(scenario: Scenario) -> bool:
    """Whether what is left out of a user's release is kept for the next one."""
    return scenario.wire.kind == "topk" and scenario.wire.feedback


def owed(scenario: Scenario, store: PrivateStore, users: Iterable[str], before: int, here: Origin) -> Mapping[str, State]:
    """What earlier rounds have left out of each user's releases."""
    return {user: store.parts(user, before, here).get(OWED, {}) for user in users} if remembers(scenario) else {}


def thinned(scenario: Scenario, own: OwnNoise | None, task: Task, user: str, release: Release, owed: State) -> tuple[Release, State]:
    """A user's release, with the user's ``own`` noise where there is any, as it goes into a message, and what is left out of it.

    Before a clip, so that the bound holds for what is sent; after own noise, so that all that is sent and kept is private already.
    """
    release = own.noised(release, task, user) if own else release
    update, left = compressors.user(release.update, owed, scenario.wire)
    return replace(release, update=update), left


def bounded(scenario: Scenario, own: OwnNoise | None, task: Task, release: Release, metrics: dict[str, float]) -> Release:
    """A thinned release with its numbers, as guarantee U lets it out: what has own noise needs no bound, and no number goes along."""
    if own and release.update:
        return release
    release = replace(release, metrics=metrics)
    return clipped(release, task) if scenario.privacy.of_users and not own else release


def scored(node: Node, task: Task, users: Sequence[str], releases: Iterable[Release]) -> Iterator[Release]:
    """The releases of these users, of which the first carries sums of their scores before the training, where the task asks for any."""
    sums: dict[str, float] = {}
    if task.rows:
        seen = copy.copy(node)
        seen.dataset = replace(node.dataset, users={user: node.dataset.users[user] for user in users}, unseen={})
        sums = riding.sums(seen.evaluate(task, "validation", task.rows))
    for release in releases:
        yield replace(release, metrics={**release.metrics, **sums}) if sums else release
        sums = {}


def pressed(scenario: Scenario, task: Task, release: Release, sender: str) -> Release:
    """A message's release as the wire holds it; the coins are the ``sender``'s, a user or the first of a node's."""
    coins = generator(scenario.seed, task.round, sender, "rounding")
    return replace(release, update=compressors.message(release.update, scenario.wire, coins))


def summed(scenario: Scenario, task: Task, releases: Iterable[Release], users: Sequence[str]) -> list[Release]:
    """One message for all of a node's users who were asked; a release that is not in order is left out."""
    limit = scenario.max_release_norm
    return [pressed(scenario, task, r, users[0]) for r in total(r for r in releases if refusal(r, task.shared, limit) is None)]
