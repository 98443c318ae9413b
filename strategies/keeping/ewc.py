"""EWC on the change of the weights: what mattered in earlier periods is held where it was.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", arXiv 1612.00796, eq. 3, in its online form (Schwarz et
al., "Progress & Compress", arXiv 1805.06370, section 3: one anchor, importances that add up), on D = B A - B* A* instead of on factors:

    (strength / 2)  sum_ij F_ij D_ij^2

It depends on the product alone, so (R A, B R^-1) costs what (A, B) does. F is kept as its sums over rows and over columns, and read
as rows_i columns_j / sum (as Adafactor, arXiv 1804.04235, does with squared gradients): O + I numbers of a module instead of O I,
and D is never written out. Of a core M, whose factors are frozen and orthonormal, D = M - M* and F is exact.

``fisher = 0``: F is 1 everywhere, which looks at no data. ``fisher = 1``: F is the mean squared slope of an example's loss, taken as a
later period begins on the examples of the earlier ones; it has no noise, so guarantee E refuses it.
"""

import torch

from strategies.keeping.contract import MEMORY, A, B, Keeping, Lesson, modules, remembered
from strategies.tree import State

ANCHOR, ROWS, COLUMNS, CORE = "anchor", "rows", "columns", ".core.weight"


def ewc(strength: float = 1.0, fisher: float = 0) -> Keeping:
    """Pull towards the last period's change of the weights, as strongly as each of its numbers mattered."""

    def begin(state: State, lesson: Lesson) -> State:
        anchor = {remembered(name, ANCHOR): state[name].clone() for name in anchored(state)}
        found = lesson.importance() if fisher else {name: ones(name, state) for name in state if is_importance(name)}
        before = {name: state[name] if fisher else torch.zeros_like(state[name]) for name in found}
        return state | anchor | {name: before[name] + value for name, value in found.items()}

    def penalty(state: State) -> State:
        return {name: strength * value for name, value in slopes(state).items()} if strength else {}

    return Keeping("arXiv 1612.00796", memory, begin, penalty=penalty, unnoised=bool(fisher), kinds=("lora", "core"))


def memory(start: State, _periods: int) -> State:
    """No importance yet."""
    found = {remembered(name, ANCHOR): torch.zeros_like(start[name]) for name in anchored(start)}
    for name in modules(start):
        found[remembered(name, ROWS)] = start[name + B].new_zeros(len(start[name + B]))
        found[remembered(name, COLUMNS)] = start[name + A].new_zeros(start[name + A].shape[1])
    return found | {remembered(n, ROWS): torch.zeros_like(v) for n, v in start.items() if n.endswith(CORE)}


def anchored(state: State) -> list[str]:
    """The private tensors that are held."""
    return [n for n in state if n.startswith("private/") and n.endswith((f".{A}", f".{B}", CORE))]


def is_importance(name: str) -> bool:
    """Whether a tensor holds importances."""
    return name.startswith((f"{MEMORY}/{ROWS}/", f"{MEMORY}/{COLUMNS}/"))


def ones(name: str, state: State) -> torch.Tensor:
    """The sums of an importance of 1 everywhere: each row's is the number of columns. Of a core, the importance itself."""
    value, other = state[name], ROWS if name.startswith(f"{MEMORY}/{COLUMNS}/") else COLUMNS
    beside = name.replace(f"/{COLUMNS}/" if other == ROWS else f"/{ROWS}/", f"/{other}/", 1)
    return torch.full_like(value, float(len(state[beside])) if beside in state else 1.0)


def cost(state: State) -> torch.Tensor:
    """sum_ij F_ij D_ij^2 / 2 of one user, over all modules; differentiable."""
    total = torch.zeros(())
    for name in modules(state):
        change = state[name + B] @ state[name + A] - state[_anchor(name) + B] @ state[_anchor(name) + A]
        total = total + (_importance(state, name) * change.square()).sum() / 2
    for name in (n for n in state if n.startswith("private/") and n.endswith(CORE)):
        total = total + (state[remembered(name, ROWS)] * (state[name] - state[_anchor(name)]).square()).sum() / 2
    return total


def slopes(state: State) -> State:
    """The gradient of `cost` with respect to the private tensors, with axes in front, without ever writing out D."""
    found = {}
    for name in modules(state):
        rows, columns = state[remembered(name, ROWS)], state[remembered(name, COLUMNS)]
        a, b = state[name + A], state[name + B]
        left, right = (
            torch.cat([b, -_spread(state[_anchor(name) + B], b)], -1),
            torch.cat([a, _spread(state[_anchor(name) + A], a)], -2),
        )
        weighed = right * (columns / rows.sum(-1, keepdim=True).clamp(min=1e-30)).unsqueeze(-2)
        found[name + B] = (left * rows.unsqueeze(-1)) @ (weighed @ a.mT)
        found[name + A] = (b.mT @ (left * rows.unsqueeze(-1))) @ weighed
    for name in (n for n in state if n.startswith("private/") and n.endswith(CORE)):
        found[name] = state[remembered(name, ROWS)] * (state[name] - state[_anchor(name)])
    return found


def _anchor(name: str) -> str:
    return remembered(name, ANCHOR)


def _spread(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return value.expand(*other.shape[:-2], *value.shape[-2:])


def _importance(state: State, name: str) -> torch.Tensor:
    rows, columns = state[remembered(name, ROWS)], state[remembered(name, COLUMNS)]
    return rows.unsqueeze(1) * columns / rows.sum().clamp(min=1e-30)
