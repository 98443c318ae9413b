"""One user in a phase of local training: what the engine is given of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from client.data.types import Encoded
from strategies.tree import State


@dataclass(frozen=True)
class Learner:
    """One user's part in a phase."""

    state: State  # "block/name" -> tensor: everything that is applied, moving or not
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
    key: tuple[object, ...]  # (seed, round, user, phase): keys the order of the examples
    noise: float = 0.0  # of a guarded phase: standard deviation of the noise over the bound of a unit's gradient
    mask: State = field(default_factory=dict)  # 1 or 0 for each number of moving tensors: what may move; a tensor not named may
    shift: State = field(
        default_factory=dict
    )  # what is added to the gradients of moving tensors after their clip; a tensor not named: nothing
    anchor: State = field(default_factory=dict)  # what the moving tensors are pulled to, where a phase says so
