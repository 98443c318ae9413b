"""The two factors of a LoRA, and their product B A by way of small matrices.

B [O, R] and A [R, I] of a module with I inputs and O outputs. All users have one scale s = alpha / rank, so that it stays outside:
sum_k p_k s B_k A_k = s sum_k p_k B_k A_k. A user's factors may have fewer ranks than the shared ones. Q: singular values.

An aggregator that changes the base has a third tensor beside them, delta [O, I]: a module's weight is then W + s (delta + B A). No user
trains it, the server changes and sends it, and the base itself stays as it is: in bfloat16 or quantized nothing of a change is lost.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.base import Release
from strategies.tree import State, add, weighted_mean


class Product(NamedTuple):
    """A matrix [O, I] as b a, in float64."""

    b_OR: Tensor
    a_RI: Tensor


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """The names of B and A of every module of which both are here."""
    known = set(names)
    return [(b, a) for a in sorted(known) if ".lora_A." in a and (b := a.replace(".lora_A.", ".lora_B.")) in known]


def unpaired(state: State) -> State:
    """What is none of a pair of factors."""
    factors = {name for pair in pairs(state) for name in pair}
    return {name: value for name, value in state.items() if name not in factors}


def rank_axis(name: str) -> int | None:
    """Along which axis a factor's ranks lie; None for what is no factor."""
    return 0 if ".lora_A." in name else 1 if ".lora_B." in name else None


def fits(name: str, value: Tensor, like: Tensor, narrow: bool) -> bool:
    """Whether a release's tensor has the shared one's shape; ``narrow``: a factor may have fewer ranks."""
    axis = rank_axis(name)
    if not narrow or axis is None or value.dim() != like.dim():
        return value.shape == like.shape
    return value.shape[1 - axis] == like.shape[1 - axis] and 1 <= value.shape[axis] <= like.shape[axis]


def trained(shared: State, release: Release, name: str) -> Tensor:
    """A user's own tensor after training, float64: what was received, as far as the user's ranks go, and the update."""
    received, sent = shared[name].double(), release.update.get(name)
    return received if sent is None else received[tuple(map(slice, sent.shape))] + sent.double() / release.weight


def mean_products(shared: State, releases: Iterable[Release],
                  averaged: Callable[[State], State]) -> tuple[dict[tuple[str, str], Product], State]:  # fmt: skip
    """The ideal aggregate sum_k p_k B_k A_k of every pair, and the weighted mean of what ``averaged`` makes of the updates.

    Streams: what is kept of a module are two matrices of at most 2 min(O, I) ranks, for any number of users. Without an update: {}, {}.
    """
    found: dict[tuple[str, str], Product] = {}
    modules, mass = pairs(shared), 0.0

    def each() -> Iterator[tuple[float, State]]:
        nonlocal mass
        for release in filter(lambda r: r.update, releases):
            mass += release.weight
            for b, a in modules:
                own = Product(trained(shared, release, b) * release.weight, trained(shared, release, a))
                found[b, a] = plus(found[b, a], own) if (b, a) in found else own
            yield release.weight, averaged(release.update)

    mean = weighted_mean(each())
    return {names: Product(product.b_OR / mass, product.a_RI) for names, product in found.items()}, mean


def remade(shared: State, releases: Iterable[Release],
           factors: Callable[[str, str, Product], tuple[Tensor, Tensor]]) -> tuple[State, dict[tuple[str, str], Product]]:  # fmt: skip
    """The next shared adapter, every pair made by ``factors(b, a, mean product)`` and the rest averaged; and the products."""
    products, mean = mean_products(shared, releases, unpaired)
    after = add(shared, mean)
    for (b, a), product in products.items():
        after[b], after[a] = factors(b, a, product)
    return after, products


def delta(b: str) -> str:
    """What the delta is called that stands beside a B."""
    return b.replace(".lora_B.", ".lora_delta.")


def beside(shared: State, after: State, products: Mapping[tuple[str, str], Product]) -> State:
    """The deltas with which the factors of ``after`` do what ``products`` do now: delta + b a - B A, of B and A as they are rounded."""
    return {
        delta(b): (shared[delta(b)].double() + own.b_OR @ own.a_RI - after[b].double() @ after[a].double()).to(shared[delta(b)].dtype)
        for (b, a), own in products.items()
    }


def plus(one: Product, other: Product) -> Product:
    """The sum: factors side by side, and written anew with min(O, I) ranks once they have twice as many."""
    b_OR, a_RI = torch.cat([one.b_OR, other.b_OR], 1), torch.cat([one.a_RI, other.a_RI])
    (outputs, ranks), inputs = b_OR.shape, a_RI.shape[1]
    if ranks <= 2 * min(outputs, inputs):
        return Product(b_OR, a_RI)
    if outputs < inputs:
        p_OO, x_OR = torch.linalg.qr(b_OR)
        return Product(p_OO, x_OR @ a_RI)
    q_II, y_IR = torch.linalg.qr(a_RI.T)
    return Product(b_OR @ y_IR.T, q_II.T)


def svd(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    """(u [O, Q], s [Q], v [Q, I]) with b a = u diag(s) v and Q = min(O, R, I), in O((O + I) R^2): never the [O, I] matrix."""
    (p_OR, x_RR), (q_IR, y_RR) = torch.linalg.qr(product.b_OR), torch.linalg.qr(product.a_RI.T)
    u, s_Q, v = torch.linalg.svd(x_RR @ y_RR.T, full_matrices=False)
    return signed(p_OR @ u, s_Q, v @ q_IR.T)


def signed(u_OQ: Tensor, s_Q: Tensor, v_QI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same decomposition with the largest number of each column of u positive: an SVD is free in sign, and machines shall agree."""
    sign_1Q = u_OQ.gather(0, u_OQ.abs().argmax(0, keepdim=True)).sign()
    return u_OQ * sign_1Q, s_Q, v_QI * sign_1Q.T


def factored(decomposed: tuple[Tensor, Tensor, Tensor], b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest product that has the shapes and dtypes of ``b`` and ``a``: B = U S and A = V, so that A A^T = I.

    Eckart & Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936.
    """
    u, s, v = (x.narrow(axis, 0, min(a.shape[0], len(decomposed[1]))) for x, axis in zip(decomposed, (1, 0, 0), strict=True))
    return padded(u * s, b), padded(v, a)


def padded(value: Tensor, like: Tensor) -> Tensor:
    """The same numbers in another's shape and dtype, with zeros for ranks that are not there."""
    found = torch.zeros_like(like)
    found[tuple(map(slice, value.shape))] = value.to(like.dtype)
    return found


def product_norm(b_OR: Tensor, a_RI: Tensor) -> Tensor:
    """The Frobenius norm of b a, from R x R matrices: ||b a||^2 = tr((b^T b)(a a^T))."""
    return ((b_OR.T @ b_OR) * (a_RI @ a_RI.T)).sum().clamp(min=0).sqrt()
