"""Linear regression whose users' optima are of low rank: the ideal aggregate and the best shared adapter are known in closed form.

User k draws x ~ N(0, I) and sees y = (W0 + D_k) x, with D_k = U_k S V_k^T of rank r*. The population loss of an adapter W is
1/2 |W - D_k|_F^2 (W0 falls out), so that a gradient is a matrix and nothing is sampled. Over users of shares p_k

    sum_k p_k 1/2 |W - D_k|^2  =  1/2 |W - M|^2 + const,    M = sum_k p_k D_k,

and the best W of rank r is M cut to its r largest singular values (Eckart & Young, Psychometrika 1936): the oracle.
``skew`` c turns users' subspaces apart: U_k spans sqrt(1 - c^2) U + c G_k, with G_k a user's own random subspace, V_k likewise; 0: one
product for all, 1: independent ones. An adapter has scale alpha / r = 1. K: users, O: outputs, I: inputs, R: rank of the adapter.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.tree import State, generator

MODULE = "base_model.model.synthetic"
B, A, DELTA = (f"{MODULE}.{factor}.weight" for factor in ("lora_B", "lora_A", "lora_delta"))
STRENGTHS = (2.0, 1.0)  # of a product's largest and smallest singular value; the others lie evenly between them


@dataclass(frozen=True)
class Setting:
    """One federation of the study."""

    users: int = 8
    rank: int = 4  # of the shared adapter
    skew: float = 0.5  # 0: users want the same; 1: nothing in common
    true_rank: int = 4  # of each user's own optimum
    outputs: int = 24
    inputs: int = 32
    steps: int = 10  # of gradient descent, by a user in a round
    lr: float = 0.1
    uneven: float = 0.0  # users' sizes lie between 100 / 10^uneven and 100 * 10^uneven; 0: all the same
    attackers: int = 0  # so many send `attack` times their update
    attack: float = -100.0


@dataclass(frozen=True)
class Task:
    """Users' optima and sizes, in float64."""

    optima_KOI: Tensor
    sizes_K: Tensor  # examples of each: weights in the aggregate
    shares_K: Tensor  # p_k, which add up to one
    mean_OI: Tensor  # M, the minimum of the mean loss over all matrices
    root_OI: Tensor  # the optimum of one more user, who is the server's own and in no mean

    def floor(self, a_RI: Tensor) -> float:
        """The excess of the best B for an A that stays: what M has outside of A's row space is out of reach."""
        q_IR = torch.linalg.qr(a_RI.double().T).Q
        return self.excess(self.mean_OI @ q_IR @ q_IR.T, len(a_RI))

    def excess(self, effective_OI: Tensor, rank: int) -> float:
        """Loss above the oracle's, as a share of what the oracle gains: 1 at the start, 0 at the oracle; below it, of a higher rank."""
        beyond, all_ = tail(self.mean_OI, rank) ** 2, float(self.mean_OI.square().sum())
        return (float((effective_OI - self.mean_OI).square().sum()) - beyond) / (all_ - beyond)


def task(setting: Setting, seed: int) -> Task:
    """Draw a federation. The first users of a larger one are those of a smaller one, and ``rank`` changes nothing."""
    shapes = {"U": setting.outputs, "V": setting.inputs}
    common = {side: _subspace(size, setting.true_rank, seed, "all", side) for side, size in shapes.items()}
    strength_Q = torch.linspace(*STRENGTHS, setting.true_rank, dtype=torch.float64)

    def optimum(user: object) -> Tensor:
        u, v = (_turned(common[side], _subspace(shapes[side], setting.true_rank, seed, user, side), setting.skew) for side in "UV")
        return (u * strength_Q) @ v.T

    optima_KOI = torch.stack([optimum(user) for user in range(setting.users)])
    spread_K = [float(torch.empty(()).uniform_(-1, 1, generator=generator(seed, k, "size"))) for k in range(setting.users)]
    sizes_K = torch.tensor([round(100 * 10 ** (setting.uneven * x)) for x in spread_K], dtype=torch.float64)
    shares_K = sizes_K / sizes_K.sum()
    return Task(optima_KOI, sizes_K, shares_K, mean(shares_K, optima_KOI), optimum("root"))


def start(setting: Setting, seed: int, carried: tuple[str, ...]) -> State:
    """The shared adapter before the first round, float32: B zero, A random with rows of about length 1, a carried delta zero."""
    a = torch.randn(setting.rank, setting.inputs, generator=generator(seed, setting.rank, "A")) / setting.inputs**0.5
    delta = {DELTA: torch.zeros(setting.outputs, setting.inputs)} if "lora_delta" in carried else {}
    return {B: torch.zeros(setting.outputs, setting.rank), A: a} | delta


def effective(state: State) -> Tensor:
    """What an adapter adds to W0 [O, I], in float64: B A, and the delta where there is one."""
    product_OI = state[B].double() @ state[A].double()
    return product_OI + state[DELTA].double() if DELTA in state else product_OI


def mean(shares_K: Tensor, x_KMN: Tensor) -> Tensor:
    """The mean [M, N] of matrices by their shares."""
    return torch.einsum("k,kmn->mn", shares_K, x_KMN)


def tail(matrix: Tensor, rank: int) -> float:
    """The Frobenius norm of what the nearest matrix of a rank leaves over: sqrt(sum_{i > r} s_i^2)."""
    return float(torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt())


def _subspace(size: int, rank: int, *key: object) -> Tensor:
    """Random orthonormal columns [size, rank]."""
    return torch.linalg.qr(torch.randn(size, rank, generator=generator(*key), dtype=torch.float64)).Q


def _turned(common: Tensor, own: Tensor, skew: float) -> Tensor:
    """The orthonormal columns nearest to sqrt(1 - c^2) of the common and c of one's own."""
    u, _, v = torch.linalg.svd((1 - skew**2) ** 0.5 * common + skew * own, full_matrices=False)
    return u @ v
