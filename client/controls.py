"""The rows that one trained federation can be held against, from the same forward passes.

* base: the frozen model          * shared: the shared adapter alone       * shared_private: both
* shuffled: both, but with another user's private adapter; if the gain stays, it was not personal
* majority: a choice, always by the user's own rate in training
* user_bias: a choice, the shared adapter plus one constant per label and user, fitted on the user's training split

Shape suffixes: n examples of a user, L labels, K users.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from client.data.types import Encoded
from strategies import metrics

ARRIVED = 1e-9  # a step so long, and the next one, about its square, is below what float64 holds of a constant
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of a user's constants; chosen on the validation splits of all users of a node


def majority_logits(train: Sequence[Encoded], examples: int, labels: int) -> Tensor:
    """Log of the user's smoothed label rates, the same for every example, [n, L]."""
    counts = torch.bincount(torch.tensor([e.label for e in train], dtype=torch.long), minlength=labels) + 0.5
    return (counts / counts.sum()).log().expand(examples, labels)


def user_bias_logits(fit: Sequence[tuple[Tensor, Tensor]], validation: Sequence[tuple[Tensor, Tensor]],
                     test: Sequence[Tensor]) -> list[Tensor]:  # fmt: skip
    """Add the constants that fit each user best: minimize mean CE + ridge / n * |b|^2 / 2, the ridge chosen on validation.

    ``fit`` and ``validation`` hold (logits [n, L], labels [n]) per user, ``test`` logits. Returns logits like ``test``.
    """
    best, chosen = float("inf"), [torch.zeros(t.shape[1]) for t in test]
    for ridge in RIDGES:
        biases = [_bias(z, y, ridge) for z, y in fit]
        held = [F.cross_entropy(z + b, y).item() for (z, y), b in zip(validation, biases, strict=True) if len(y)]
        loss = float(np.mean(held)) if held else 0.0
        if loss < best:
            best, chosen = loss, biases
    return [z + b for z, b in zip(test, chosen, strict=True)]


def _bias(logits_nL: Tensor, labels_n: Tensor, ridge: float) -> Tensor:
    """Newton's method on a convex problem with L unknowns; a step is at most one long, so that it arrives from anywhere."""
    b = torch.zeros(logits_nL.shape[1], dtype=torch.float64)
    z, onehot = logits_nL.double(), F.one_hot(labels_n, logits_nL.shape[1]).double()
    for _ in range(50):
        p = (z + b).softmax(1)
        slope = (p - onehot).sum(0) + ridge * b
        curve = torch.diag(p.sum(0)) - p.T @ p + ridge * torch.eye(len(b), dtype=torch.float64)
        step = torch.linalg.solve(curve, slope)
        b = b - step / step.abs().max().clamp(min=1.0)
        if float(step.abs().max()) < ARRIVED:
            break
    return b.float()


def choice_metrics(logits_nL: Tensor, labels: Sequence[int]) -> dict[str, float | None]:
    """Nll in nats per choice, accuracy, macro F1 and, between two labels, AUC of the first against the second."""
    truth = np.asarray(labels)
    logp = logits_nL.double().log_softmax(1).numpy()
    predicted = logp.argmax(1)
    found: dict[str, float | None] = {
        "nll": metrics.nll(logp[np.arange(len(truth)), truth]),
        "accuracy": metrics.accuracy(predicted, truth),
        "f1": metrics.macro_f1(predicted, truth),
    }
    if logp.shape[1] == 2:
        found["auc"] = metrics.auc(logp[:, 0], truth == 0)
    return found


def token_metrics(sums_n2: Tensor) -> dict[str, float | None]:
    """Nll in nats per token."""
    total = sums_n2.double().sum(0)
    return {"nll": float(total[0] / total[1])}
