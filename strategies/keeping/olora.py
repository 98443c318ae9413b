"""O-LoRA: every period has a LoRA of its own, in directions that the earlier ones do not use; all are added up.

Wang et al., "Orthogonal Subspace Learning for Language Model Continual Learning", EMNLP Findings 2023, arXiv 2310.14152, eq. 7 and 8:

    loss  +  strength  sum_{i < t} sum | A_i A_t^T |

Earlier factors stay as they were, bit by bit; a node keeps r (O + I) numbers of a module and period. Deviations: the paper's second
term (an L2 norm of the new factors) is left to weight decay; the new A is drawn as a LoRA's first one is.
"""

import torch

from strategies.keeping.contract import PERIOD, A, B, Keeping, Lesson, modules, remembered, summed
from strategies.tree import State, generator

PAST = "past"


def olora(strength: float = 0.5) -> Keeping:
    """Freeze what was learnt, begin a new LoRA, and keep its A away from all earlier ones."""

    def begin(state: State, lesson: Lesson) -> State:
        return put_by(state) | {n + A: drawn(state[n + A], n, lesson) for n in modules(state)} | zeros(state)

    def penalty(state: State) -> State:
        past = {name: state[remembered(name, PAST) + A].expand(*state[name + A].shape[:-2], -1, -1) for name in modules(state)}
        return {n + A: strength * (state[n + A] @ old.mT).sign() @ old for n, old in past.items()} if strength else {}

    return Keeping("arXiv 2310.14152", memory, begin, summed(PAST), penalty, kinds=("lora",))


def memory(start: State, periods: int) -> State:
    """Room for the factors of all periods but the last."""
    found = {}
    for name in modules(start):
        (rank, columns), rows, past = start[name + A].shape, len(start[name + B]), remembered(name, PAST)
        found[past + A] = start[name + A].new_zeros((periods - 1) * rank, columns)
        found[past + B] = start[name + B].new_zeros(rows, (periods - 1) * rank)
    return found


def put_by(state: State) -> State:
    """The state with its LoRA also among those of the past, in the place of the period that it was trained in."""
    found, period = dict(state), int(state[PERIOD])
    for name in modules(state):
        past, rank = remembered(name, PAST), len(state[name + A])
        place = slice((period - 1) * rank, period * rank)
        a, b = state[past + A].clone(), state[past + B].clone()
        a[place], b[:, place] = state[name + A], state[name + B]
        found |= {past + A: a, past + B: b}
    return found


def zeros(state: State) -> State:
    """Every B at zero: a new LoRA changes nothing yet."""
    return {name + B: torch.zeros_like(state[name + B]) for name in modules(state)}


def drawn(a: torch.Tensor, name: str, lesson: Lesson) -> torch.Tensor:
    """A new A, as LoRA draws its first one."""
    bound = a.shape[1] ** -0.5
    return torch.empty(a.shape).uniform_(-bound, bound, generator=generator(*lesson.key, lesson.period, name)).to(a)
