"""LoRASuite: another depth and width. Layers are mapped by what they do to public texts, heads and inner neurons by likeness, and the
residual stream by a transfer matrix between the embeddings.

Li et al., "LoRASuite: Efficient LoRA Adaptation Across Large Language Model Upgrades", arXiv 2505.13515, section 3; linear CKA is of
Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv 1905.00414, eq. 3.

    layers    argmax_f sum_l CKA(X'_l, X_f(l)), f not decreasing, by dynamic programming; X_l [N, D] is what layer l adds to the stream
    stream    e' = e T, T = argmin |E T - E'| over the vocabulary, and back e = e' S, S = argmin |E' S - E|
    heads     an assignment (Hungarian) by the cosine of what they read and write, once the stream is turned; inner neurons likewise

Deviations: to the CKA of two layers the likeness of what they read is added, since random layers of one input are alike to a CKA;
likeness of heads is that of weights, not of activations; the few steps of training that the paper adds are left to
`distill` and `retrain`. Equal embeddings need no transfer: then a base and itself change nothing.

Shape suffixes: L layers, N tokens of texts, D width, V vocabulary, H heads, E head size, F features.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from configs.errors import InputError
from strategies.migrators.terms import PROMPT, Ground, Migrator, Turn, Way, Ways

READS = {"q_proj": "stream", "k_proj": "stream", "v_proj": "stream", "gate_proj": "stream", "up_proj": "stream",
         "o_proj": "queries", "down_proj": "inner"}  # fmt: skip
WRITES = {"q_proj": "queries", "k_proj": "keys", "v_proj": "keys", "gate_proj": "inner", "up_proj": "inner",
          "o_proj": "stream", "down_proj": "stream"}  # fmt: skip
Turns = dict[str, tuple[Turn | None, Turn | None]]  # space -> (for what is written to it, for what is read from it)


def layers() -> Migrator:
    """Build it."""
    return Migrator("arXiv 2505.13515", _ways, texts=True, exact=True)


def _ways(old: Ground, new: Ground) -> Ways:
    if old.activations_LND is None or new.activations_LND is None:
        raise RuntimeError("layers are mapped by what they do to public texts, which nobody has run")
    if old.heads.size != new.heads.size:
        raise InputError(
            f"layers keeps heads whole: they have {old.heads.size} numbers there and {new.heads.size} here; use --with distill"
        )
    stream = transfer(old.embeddings_VD, new.embeddings_VD)
    likeness = cka(new.activations_LND, old.activations_LND) + inner(reading(new, None), reading(old, stream[1]))
    source = mapping(likeness)
    known, ways, done = {place: m for m, place in old.places.items()}, {}, {}
    for module in new.targets:
        if module == PROMPT:
            ways[module] = Way(PROMPT, stream[0])
            continue
        layer, name = new.places[module]
        kind = name.rpartition(".")[2]
        if kind not in READS:
            raise InputError(f"layers knows {', '.join(READS)}, and not '{name}'; use --with distill")
        if layer not in done:
            done[layer] = _turns(_layer(old, source[layer]), _layer(new, layer), old, new, stream)
        if (found := known.get((source[layer], name))) is not None:
            ways[module] = Way(found, done[layer][WRITES[kind]][0], done[layer][READS[kind]][1])
    return ways


def cka(new_LND: Tensor, old_LND: Tensor) -> Tensor:
    """Linear CKA of each layer of one base with each of the other, [L', L]: one where they say the same, up to rotation and scale."""
    centred = [x.double() - x.double().mean(1, keepdim=True) for x in (new_LND, old_LND)]
    return inner(*(x @ x.transpose(1, 2) for x in centred))


def reading(ground: Ground, read: Turn | None) -> Tensor:
    """W^T W over all weights of a layer that read the stream, less its mean on the diagonal, [L, D, D]: blind to the order of heads."""
    layers = [_layer(ground, number) for number in range(ground.depth)]
    rows = [torch.cat([_turned(read, w.T).T for n, w in layer.items() if READS.get(n) == "stream"]).double() for layer in layers]
    gram_LDD = torch.stack([w.T @ w for w in rows])
    return gram_LDD - gram_LDD.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(gram_LDD.shape[1], dtype=torch.float64)


def inner(one_LXX: Tensor, other_LXX: Tensor) -> Tensor:
    """The cosine of every matrix of one with every matrix of the other, [L, L]."""
    unit = [x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True).clamp(min=1e-30) for x in (one_LXX, other_LXX)]
    return unit[0] @ unit[1].T


def mapping(likeness: Tensor) -> list[int]:
    """For each new layer an old one, never a lower one than for the layer below, with the greatest sum of likeness [L', L]."""
    score = likeness.double().numpy()
    best, back = score[0].copy(), []
    for row in score[1:]:
        reached = np.array([int(np.argmax(best[: j + 1])) for j in range(len(best))])
        best, back = best[reached] + row, [*back, reached]
    at = [int(np.argmax(best))]
    for reached in reversed(back):
        at.append(int(reached[at[-1]]))
    return at[::-1]


def transfer(old_VD: Tensor, new_VD: Tensor) -> tuple[Turn | None, Turn | None]:
    """How the residual stream is written to and read from: T^T and S. None where the embeddings are equal."""
    if torch.equal(old_VD, new_VD):
        return None, None
    if len(old_VD) != len(new_VD):
        raise InputError(f"layers needs one vocabulary: {len(old_VD)} tokens there and {len(new_VD)} here; use --with distill")
    there, here = old_VD.detach().double().cpu(), new_VD.detach().double().cpu()
    t, s = torch.linalg.lstsq(there, here).solution, torch.linalg.lstsq(here, there).solution
    return _matrix(t.T), _matrix(s)


def _turns(old_layer: dict[str, Tensor], new_layer: dict[str, Tensor], old: Ground, new: Ground,
           stream: tuple[Turn | None, Turn | None]) -> Turns:  # fmt: skip
    def features(layer: dict[str, Tensor], reads: tuple[str, ...], writes: tuple[str, ...], parts: int, turned: bool) -> Tensor:
        """What each part reads from the stream and writes to it, [parts, F]; the old base's in the new one's stream."""
        write, read = stream if turned else (None, None)
        rows = [_turned(read, layer[n].double().T).T for n in reads] + [_turned(write, layer[n].double()).T for n in writes]
        return torch.cat([x.reshape(parts, -1) for x in rows], 1)

    def places(reads: tuple[str, ...], writes: tuple[str, ...], parts: tuple[int, int], size: int) -> tuple[Turn | None, Turn | None]:
        pair = [features(x, reads, writes, n, turned) for x, n, turned in ((old_layer, parts[0], True), (new_layer, parts[1], False))]
        turn = _moved(matched(*pair), parts[0], size)
        return turn, turn

    neurons = len(old_layer["up_proj"]), len(new_layer["up_proj"])
    return {
        "stream": stream,
        "queries": places(("q_proj",), ("o_proj",), (old.heads.queries, new.heads.queries), new.heads.size),
        "keys": places(("k_proj", "v_proj"), (), (old.heads.keys, new.heads.keys), new.heads.size),
        "inner": places(("gate_proj", "up_proj"), ("down_proj",), neurons, 1),
    }


def matched(old_HF: Tensor, new_HF: Tensor) -> list[int]:
    """For each new part the old one that is most like it, each at most once: -1 where there are more new ones."""
    unit = [x / x.norm(dim=1, keepdim=True).clamp(min=1e-30) for x in (old_HF, new_HF)]
    rows, columns = linear_sum_assignment((unit[1] @ unit[0].T).numpy(), maximize=True)
    found = [-1] * len(new_HF)
    for here, there in zip(rows, columns, strict=True):
        found[int(here)] = int(there)
    return found


def _moved(order: list[int], before: int, size: int) -> Turn | None:
    """Parts of ``size`` numbers that change places; None where all stay."""
    if order == list(range(before)):
        return None
    index = torch.tensor([part * size + i if part >= 0 else -1 for part in order for i in range(size)])

    def apply(x_DR: Tensor) -> Tensor:
        at = index.to(x_DR.device)
        return torch.where((at >= 0)[:, None], x_DR[at.clamp(min=0)], 0.0)

    return Turn(apply, moves=True)


def _matrix(m: Tensor) -> Turn:
    return Turn(lambda x_DR: (m @ x_DR.double().cpu()).to(x_DR))


def _turned(turn: Turn | None, x_DR: Tensor) -> Tensor:
    return x_DR if turn is None else turn.apply(x_DR)


def _layer(ground: Ground, number: int) -> dict[str, Tensor]:
    """The weights of one layer by their last names."""
    return {name.rpartition(".")[2]: ground.weights[m].detach().cpu() for m, (at, name) in ground.places.items() if at == number}
