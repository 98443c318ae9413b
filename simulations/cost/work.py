"""How much there is to compute, counted and not timed: the same on every machine.

An operation counts the numbers that it reads and writes; a product of matrices [.., M, K] [.., K, N] counts M N K for each, and a
decomposition of [.., M, N] counts M N min(M, N).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "dot")


class Counter(TorchDispatchMode):
    """Adds up the work of every operation within."""

    def __init__(self) -> None:
        super().__init__()
        self.work = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        read, written = ([x for x in tree_leaves(each) if isinstance(x, Tensor)] for each in ((args, kwargs), found))
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.work += written[0].numel() * read[-2].shape[-1]
        elif "linalg" in name and read[0].dim() > 1:
            self.work += read[0].numel() * min(read[0].shape[-2:])
        else:
            self.work += sum(x.numel() for x in (*read, *written))
        return found


def counted(do: Callable[[], object]) -> int:
    """The work of a call."""
    with Counter() as counter, torch.no_grad():
        do()
    return counter.work
