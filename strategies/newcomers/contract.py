"""What a way to begin with a new user is: what the federation works out once and sends, and what the newcomer's node makes of it.

A state is "block/name" -> tensor. J candidates, K users who have released their private adapters, E numbers of a profile.

What is sent is made from released adapters and published profiles alone. A private adapter that was trained under guarantee E is
(epsilon, delta)-private in any one example of its user, against whoever obtains it, so that to send it on costs its user no more;
without E it is not sent. What the newcomer's node makes of its own examples it makes under E as well: `Judge`.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from strategies.tree import State


class Verdict(NamedTuple):
    """What a newcomer's examples say of candidates."""

    losses_J: Tensor  # nats, summed over the examples; only differences mean anything
    noise: float  # standard deviation of the noise in each of them; 0: none


Judge = Callable[[State], Verdict]  # candidates, [J, ...] each -> a verdict; under E with noise that is booked


class Asked(NamedTuple):
    """What a newcomer's node has of its own. Nothing of it leaves the node."""

    judge: Judge
    profile_E: Tensor | None = None  # what the base makes of the words that the user says about themselves


class Way(NamedTuple):
    """How a new user's private adapter begins."""

    paper: str
    # (adapter as it is made, released adapters [K, ...], published profiles [K, E]) -> what newcomers are sent
    prepare: Callable[[State, State, Tensor], State]
    begin: Callable[[State, Asked], State]  # (what was sent, the newcomer's own) -> the private adapter to begin with
    releases: bool = False  # needs private adapters that may be released
    examples: bool = False  # looks at the newcomer's examples
    profiles: bool = False  # needs profiles that users publish
    mixes: bool = False  # adds adapters up
    share: float = 0.0  # of the newcomer's budget of guarantee E (of mu^2), for looking at examples
    bound: float = 1.0  # L2, nats: what one privacy unit adds to the losses of all candidates at most
