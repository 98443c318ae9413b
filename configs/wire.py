"""The scenario's group about messages."""

from dataclasses import dataclass
from typing import Literal

from configs.errors import InputError


@dataclass(frozen=True)
class Wire:
    """What becomes of tensors on their way, the same in one process and over Flower. It changes the result."""

    kind: Literal["none", "bf16", "fp16", "int8", "topk"] = "none"  # of releases: a file each in strategies/compressors/
    keep: float = 0.1  # topk: share of each tensor's numbers that is sent
    feedback: bool = True  # topk: what was not sent is added to the user's next update; it stays on the node
    down: Literal["float32", "bf16"] = "float32"  # of the shared adapter that nodes receive; the server keeps float32
    nodes: int = 0  # of a simulation: users are dealt out over so many nodes, each of which may send one sum; 0: every user is one

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"wire.keep must be above 0 and at most 1, got {self.keep!r}")
        if self.nodes < 0:
            raise InputError(f"wire.nodes must be 0 (every user is one) or a count, got {self.nodes!r}")
