"""A node's part in a secure sum: one vector of whole numbers for all of its users, and what it has to remember between two messages.

The vector holds the users' updates on the grid of `strategies.privacy.discrete`, added up, and after them the counts of `COUNTED`. A
count is a whole number of 2**-20, in three limbs of 20 bits, so that the limbs of 2000 nodes add up below 2**31. Each user's update is
rounded by coins of its own, which its numbers and the seed decide: so the sum is the same to the last bit however users are spread over
nodes. Coins that are known cost no privacy: an update's norm on the grid is bounded for every coin.

Without guarantee U the bound of an update is `Scenario.max_release_norm`. Under it the bound is that guarantee's, each node adds its
share of the sum's noise, and no counts are sent. Only so many noises are counted on as the threshold leaves after the nodes that may
collude. Server and nodes work all this out from the scenario and a `Call`.

D: numbers of an update. M: of a vector, D and the counts' limbs.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client import masking
from client.masking import MODULUS, MaskingError, Terms
from client.wire import METRICS
from configs.errors import InputError
from configs.scenario import Scenario
from strategies.admission import refusal
from strategies.base import Aggregator, Release, Task, released
from strategies.files import read_state, write_state, write_text
from strategies.privacy.discrete import Bits, Grid, entropy, fit, keyed, noised, quantize, restore, unknown_noises
from strategies.tree import State, generator

COUNTED = ("users", *(name for name in METRICS if name != "load"))
LIMB, LIMBS, FRACTION = 20, 3, 20  # bits, how many, bits after the point
MOST = 2 ** (LIMB * LIMBS - FRACTION) - 1  # the largest count
STATE, VECTOR = "state.json", "vector.safetensors"


@dataclass(frozen=True)
class Call:
    """What a server says of a sum before it begins. The rest the scenario says."""

    session: str  # different for every sum
    users: int  # in all, that are asked to take part
    nodes: int  # that keep them
    noise: float = 0.0  # guarantee U: standard deviation of the sum's noise over the norm of one user's update on the grid


@dataclass(frozen=True)
class Form:
    """What the vectors of a sum hold, and on which terms they are added up. All parties have the same one."""

    terms: Terms
    grid: Grid
    like: State  # names and shapes of the update; {}: there is none
    counted: tuple[str, ...]


def form(scenario: Scenario, aggregator: Aggregator, task: Task, call: Call) -> Form:
    """Work out a sum's form. Raises `InputError` for one that hides nothing or has no room, and for noise where none belongs."""
    how, level = scenario.privacy.masking, scenario.privacy.user
    trains = "shared" in task.turns
    like = {name: value for name, value in task.shared.items() if trains and released(name, aggregator.factors(task.round))}
    threshold = max(2, math.ceil(how.threshold * call.nodes - 1e-9))
    if not threshold <= call.nodes <= call.users:
        raise InputError(f"a secure sum needs {threshold} nodes with a user each, and was called for {call.nodes} with {call.users}")
    if (call.noise > 0) != (scenario.privacy.of_users and trains) or not math.isfinite(call.noise):
        raise InputError(f"noise of a secure sum is {call.noise} under privacy.guarantee={scenario.privacy.guarantee}")
    bound = level.clip if scenario.privacy.of_users else scenario.max_release_norm
    size = sum(value.numel() for value in like.values())
    honest = unknown_noises(threshold, math.ceil(how.colluding * call.nodes - 1e-9))
    counted = () if scenario.privacy.of_users else COUNTED
    terms = Terms(call.session, size + LIMBS * len(counted), threshold, how.neighbours)
    return Form(terms, fit(bound, max(size, 1), call.users, call.noise, honest), like, counted)


def vector(scenario: Scenario, task: Task, how: Form, releases: Iterable[Release], users: int, bits: Bits | None = None) -> Tensor:
    """All that a node sends of at most so many users, int64 M. A release that is not in order adds nothing.

    ``bits`` are where a node's noise comes from, by default the operating system.
    """
    total_D, counts = torch.zeros(sum(value.numel() for value in how.like.values()), dtype=torch.int64), dict.fromkeys(how.counted, 0)
    seen = 0
    for release in releases:
        if refusal(release, task.shared, math.inf) or release.update.keys() != how.like.keys() or release.users != 1:
            continue
        seen += 1
        if how.like:
            total_D += quantize(release.update, how.grid, keyed(_coins(scenario.seed, task.round, release.update)))
        for name in how.counted:
            counts[name] += _fixed(1.0 if name == "users" else release.metrics.get(name, 0.0))
    if seen > users:
        raise InputError(f"{seen} releases for the {users} users of a secure sum")
    if how.like:
        total_D = noised(total_D, how.grid, bits or entropy, users)
    return torch.cat([total_D, *(_limbs(count) for count in counts.values())])


def seeded(scenario: Scenario, task: Task, first: str) -> Bits:
    """The noise of a node that is only played: the seed's, by the ``first`` of its users, so that a repeated round is the same."""
    return keyed(generator(scenario.seed, task.round, first, "secure"))


def read(sum_M: Tensor, how: Form, users: int, denominator: float = 0.0) -> Release | None:
    """The sum as one release; None where nobody is in it.

    ``users`` are those of the nodes that are in the sum, for sums that hold no count. ``denominator`` is the release's weight, where
    a guarantee asks for one that was fixed before the round; 0: the count.
    """
    size = sum(value.numel() for value in how.like.values())
    limbs = sum_M[size:].reshape(-1, LIMBS).tolist()
    counts = {n: sum(limb << (LIMB * i) for i, limb in enumerate(x)) / 2**FRACTION for n, x in zip(how.counted, limbs, strict=True)}
    found = round(counts.pop("users", users))
    if not found:
        return None
    update = restore(sum_M[:size], how.grid, how.like) if how.like else {}
    return Release(update, (denominator or float(found)) if update else 0.0, found, counts)


def begin(folder: Path, terms: Terms, me: str, vector_M: Tensor) -> bytes:
    """Keep a vector and new keys in ``folder``, in place of what an earlier sum has left there, and advertise the keys."""
    state, answer = masking.advertise(terms, me)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_state(folder / VECTOR, {"vector": vector_M})
    write_text(folder / STATE, masking.dump(state).decode())
    return answer


def answer(folder: Path, step: str, message: bytes) -> bytes:
    """Take the step "share", "mask" or "reveal": the state that follows is on disk before there is an answer.

    Raises `MaskingError` for a step or a message that the protocol does not have next.
    """
    if not (folder / STATE).exists():
        raise MaskingError("no secure sum is open here")
    state = masking.load((folder / STATE).read_bytes())
    if step == "mask":
        vector_M = read_state(folder / VECTOR)["vector"] if state.step == step else torch.empty(0)
        after, said = masking.mask(state, message, vector_M, MODULUS // 2 - 1)
    elif step in ("share", "reveal"):
        after, said = (masking.share if step == "share" else masking.reveal)(state, message)
    else:
        raise MaskingError(f"a secure sum has no step '{step}'")
    write_text(folder / STATE, masking.dump(after).decode())
    if step == "mask":
        (folder / VECTOR).unlink()
    return said


def _coins(seed: int, round_: int, update: State) -> torch.Generator:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(update):
        digest.update(update[name].detach().cpu().contiguous().numpy().tobytes())
    return generator(seed, round_, digest.hexdigest(), "rounding")


def _fixed(count: float) -> int:
    return round(min(max(count, 0.0), MOST) * 2**FRACTION)


def _limbs(count: int) -> Tensor:
    return torch.tensor([count >> (LIMB * i) & (2**LIMB - 1) for i in range(LIMBS)])
