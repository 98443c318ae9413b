"""Factors of a core that fit what the base does with public texts: the Kronecker-factored eigenbasis of its Fisher matrix.

Martens & Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", ICML 2015, arXiv 1503.05671, section 3:
the Fisher matrix of a linear module is about E[x x^T] (x) E[g g^T], with x its input and g the slope of the loss at its output. V
holds the leading eigenvectors of the first, U of the second; so a core's few numbers lie where the model's answers are most
sensitive. Labels are drawn at random, texts belong to nobody: no user's data enters.

Shape suffixes: M predicting positions, I and O in and out, R rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from client.adapters.layout import Layout
from client.adapters.types import Part
from client.data.types import Encoded
from client.objective import row_losses
from client.tower import Tower
from configs.errors import InputError
from strategies.tree import State, generator

TEXTS = 512  # at most so many public texts, spread evenly over what there is
ROWS = 64  # of them in a pass
FLOOR = 1e-2  # singular values count at least so much of the largest


@dataclass(frozen=True)
class _Probe:
    """Stands where a layout would: notes each module's input and lets a slope be taken at its output."""

    modules: tuple[str, ...]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def parts(self, _state: State) -> dict[str, Part]:
        def part(name: str) -> Part:
            def note(x: Tensor, y: Tensor) -> Tensor:
                self.inputs[name] = x.detach()
                self.outputs[name] = torch.zeros_like(y, requires_grad=True)
                return y + self.outputs[name]

            return note

        return {name: part(name) for name in self.modules}


def needs_texts(layout: Layout) -> bool:
    """Whether a layout's factors are fitted to public texts."""
    return layout.config.factors == "fisher" and layout.config.kind in ("core", "mixed")


def fitted(layout: Layout, tower: Tower, public: Sequence[Encoded], label_ids: tuple[int, ...]) -> Layout:
    """The same layout with its factors fitted to public texts. Raises `InputError` where there are none."""
    if not needs_texts(layout):
        return layout
    if not public:
        raise InputError(f"{layout.block}.factors: 'fisher' needs public texts, which this data has not; use 'svd' or 'random'")
    texts = [public[i] for i in torch.linspace(0, len(public) - 1, min(TEXTS, len(public))).long().tolist()]
    inputs, slopes = _record(layout, tower, texts, label_ids)
    device = tower.base.device
    constants = {
        name: {"U": _directions(slopes[name], layout.config.rank, spread=1.0).T.contiguous().to(device),
               "V": _directions(inputs[name], layout.config.rank, spread=0.5).to(device)}
        for name in layout.modules
    }  # fmt: skip
    return replace(layout, constants=constants)


def _record(layout: Layout, tower: Tower, texts: Sequence[Encoded], label_ids: tuple[int, ...]) -> tuple[State, State]:
    """Inputs [M, I] and slopes [M, O] of every module over the texts."""
    found: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]] = ({}, {})
    for first in range(0, len(texts), ROWS):
        part = [_relabelled(e, first + i, len(label_ids)) for i, e in enumerate(texts[first : first + ROWS])]
        probe = _Probe(layout.modules, {}, {})
        loss = row_losses(tower.base, tower(part, [(probe, {})]), len(part), label_ids).sum()  # type: ignore[list-item]
        slopes = torch.autograd.grad(loss, list(probe.outputs.values()))
        for name, slope in zip(probe.outputs, slopes, strict=True):
            felt = slope.flatten(0, -2).abs().sum(1) > 0  # positions that no loss depends on say nothing
            found[0].setdefault(name, []).append(probe.inputs[name].flatten(0, -2)[felt].float().cpu())
            found[1].setdefault(name, []).append(slope.flatten(0, -2)[felt].float().cpu())
    return {n: torch.cat(v) for n, v in found[0].items()}, {n: torch.cat(v) for n, v in found[1].items()}


def _relabelled(example: Encoded, index: int, labels: int) -> Encoded:
    if not labels:
        return example
    return replace(example, label=int(torch.randint(labels, (1,), generator=generator("fisher", index))))


def _directions(rows_MD: Tensor, rank: int, spread: float) -> Tensor:
    """Leading eigenvectors of E[z z^T], [R, D], over the root of the largest eigenvalue: the first is felt with strength one,

    the i-th with (sigma_i / sigma_1) ** spread. One keeps the strengths as they are, zero makes all of them one.
    """
    _, singular, basis = torch.linalg.svd(rows_MD / len(rows_MD) ** 0.5, full_matrices=False)
    basis, singular = basis[:rank], singular[:rank].clamp(min=float(singular[0]) * FLOOR)
    sign = basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    return sign * basis * ((singular / singular[0]) ** spread / singular)[:, None]
