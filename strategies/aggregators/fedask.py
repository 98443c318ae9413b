"""FedASK: the mean product, out of two sums of users' sketches of their own.

Wen et al., "Differentially Private Federated Low Rank Adaptation Beyond Fixed-Matrix", arXiv 2507.09990, algorithm 1.

    Y = sum_k p_k B_k (A_k Omega),    Q R = Y,    P = sum_k p_k A_k^T (B_k^T Q),    U S V = Q P^T,    B <- U sqrt(S),    A <- sqrt(S) V

cut back to the rank r, with a public random Omega [d_in, r + over]. Exact where the mean product has no more than r ranks, as where
all users have one A; else it loses what an SVD does and a little more. Omega is the same in every round.

Deviation: the paper's users send B_k A_k Omega, get Q, and send A_k^T B_k^T Q: two sums, and no more. A round here has one exchange, in
which users send their factors and the server makes both sums of them. The adapter is the same, to rounding. What is lost: the server
sees each user's release. No sum of factors tells the mean product, so that it works neither under secure sums nor under guarantee U
with a trusted server's noise, for which the paper made it. Upward it costs r (I + O) numbers instead of (r + over) (I + O).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from strategies.aggregators.fedit import both
from strategies.base import Aggregator, Release
from strategies.lora import Product, padded, remade, svd
from strategies.options import within
from strategies.tree import State, generator


def fedask(over: float = 2) -> Aggregator:
    """Build FedASK. Not linear in this form. ``over``: so many columns of the sketch beyond the rank."""
    width = int(within("over", over, 0, 1024))

    def apply(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
        def factors(b: str, a: str, product: Product) -> tuple[Tensor, Tensor]:
            u, s, v = svd(sketched(product, omega(b, shared[a], width)))
            rank = min(len(s), len(shared[a]))
            root = s[:rank].sqrt()
            return padded(u[:, :rank] * root, shared[b]), padded(root[:, None] * v[:rank], shared[a])

        return memory, remade(shared, releases, factors)[0]

    return Aggregator(lambda _: {}, apply, both, linear=False, paper="arXiv 2507.09990", invariant=True, individual=True,
                      hetero_rank=True, paired=True)  # fmt: skip


def omega(name: str, a_RI: Tensor, width: int) -> Tensor:
    """The directions in which a module's product is looked at, normal, [I, R + width] in float64."""
    ranks, inputs = a_RI.shape
    drawn = torch.randn(inputs, ranks + width, generator=generator("fedask", name), dtype=torch.float64)
    return drawn.to(a_RI.device)


def sketched(product: Product, omega_IW: Tensor) -> Product:
    """Q (Q^T b a) with Q an orthonormal basis of b a Omega: the product itself where it has no more ranks than Omega has columns.

    Halko, Martinsson & Tropp, "Finding Structure with Randomness", SIAM Review 2011, arXiv 0909.4061, algorithm 4.1.
    """
    q_OW = torch.linalg.qr(product.b_OR @ (product.a_RI @ omega_IW)).Q
    return Product(q_OW, (q_OW.T @ product.b_OR) @ product.a_RI)
