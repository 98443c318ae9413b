"""What one user's numbers of one module become on their way to another base, kind by kind. Numbers are named by their suffix.

A LoRA goes in factors. A core M of frozen factors has the new base's factors, in which the old change is expressed by least squares:

    dW = U M V,   U' M' V' ~ out(U) M into(V^T)^T,   M' = X M Y,   X = U'^+ out(U),   Y = into(V^T)^T V'^+

Shape suffixes: O out, I in, R rank, n vectors of a prompt.
"""

import torch
from torch import Tensor

from strategies.lora import Product, product_norm
from strategies.migrators.terms import Turn, Way
from strategies.tree import State


def lora(own: State, way: Way) -> State:
    """B and A, and a delta beside them where there is one: out(B), into(A^T)^T."""

    def of(name: str, value: Tensor) -> Tensor:
        if name.startswith("lora_A"):
            return turned(way.into, value.T).T
        left = turned(way.out, value)
        return left if name.startswith("lora_B") else turned(way.into, left.T).T

    return {name: of(name, value) for name, value in own.items()}


def core(m_RR: Tensor, xy: tuple[Tensor, Tensor] | None) -> Tensor:
    """X M Y; M to the bit where nothing changes."""
    return m_RR if xy is None else (xy[0] @ m_RR.double().cpu() @ xy[1]).to(m_RR)


def mixing(t_RR: Tensor, xy: tuple[Tensor, Tensor] | None, gain: float) -> Tensor:
    """T of a mixed core, U M (I + g T) V: its right side is everybody's, I + g T' = (I + g T) Y, and `left` is the user's."""
    if xy is None:
        return t_RR
    t, eye = t_RR.double().cpu(), torch.eye(len(t_RR), dtype=torch.float64)
    return (((eye + gain * t) @ xy[1] - torch.eye(xy[1].shape[1], dtype=torch.float64)) / gain).to(t_RR)


def left(m_RR: Tensor, xy: tuple[Tensor, Tensor] | None) -> Tensor:
    """M of a mixed core: X M."""
    return m_RR if xy is None else (xy[0] @ m_RR.double().cpu()).to(m_RR)


def frames(old: State, new: State, way: Way) -> tuple[Tensor, Tensor] | None:
    """X and Y for the frozen factors U [O, R] and V [R, I] of a module on both bases, float64; None where nothing changes."""
    if way.plain and all(torch.equal(old[name].cpu(), new[name].cpu()) for name in ("U", "V")):
        return None
    u_OR, v_IR = sides(old, way)
    return torch.linalg.pinv(_exact(new["U"])) @ u_OR, v_IR.T @ torch.linalg.pinv(_exact(new["V"]))


def lost(m_RR: Tensor, after_RR: Tensor, old: State, new: State, way: Way) -> tuple[float, float]:
    """(|dW - U' M' V'|^2, |dW|^2) with dW as it should be on the new base."""
    (u_OR, v_IR), m, after = sides(old, way), _exact(m_RR), _exact(after_RR)
    whole = Product(u_OR @ m, v_IR.T)
    rest = Product(torch.cat([whole.b_OR, -_exact(new["U"]) @ after], 1), torch.cat([whole.a_RI, _exact(new["V"])]))
    return float(product_norm(*rest)) ** 2, float(product_norm(*whole)) ** 2


def sides(old: State, way: Way) -> tuple[Tensor, Tensor]:
    """out(U) [O', R] and into(V^T) [I', R], float64."""
    return turned(way.out, _exact(old["U"])), turned(way.into, _exact(old["V"]).T)


def scaled(l_O1: Tensor, way: Way) -> Tensor:
    """(IA)^3's factors of outputs, which can follow outputs that change places and nothing else; new ones begin at one."""
    return 1 + turned(way.out, l_O1 - 1) if way.out else l_O1


def prompt(soft_nD: Tensor, way: Way) -> Tensor:
    """Vectors before a user's tokens."""
    return turned(way.out, soft_nD.T).T


def turned(turn: Turn | None, x_DR: Tensor) -> Tensor:
    """The columns after a turn."""
    return x_DR if turn is None else turn.apply(x_DR)


def _exact(value: Tensor) -> Tensor:
    return value.detach().double().cpu()
