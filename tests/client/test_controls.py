"""A user's own constants: found from wherever the shared adapter leaves them, and no larger than the validation splits bear."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.nn import functional as F  # noqa: N812

from client.controls import RIDGES, _bias, majority_logits, user_bias_logits
from client.data.types import Encoded


def user(seed: int, offset: float, n: int = 60, like: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are off by a constant, and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 2, generator=generator) + torch.tensor([offset, 0.0])
    return logits, (torch.rand(n, generator=generator) > like).long()


@pytest.mark.parametrize("offset", [0.0, 4.0, -9.0, 20.0])
@pytest.mark.parametrize("ridge", [RIDGES[0], RIDGES[-1]])
def test_constants_are_the_optimum_however_far_off_the_model_is(offset: float, ridge: float) -> None:
    logits, labels = user(0, offset)

    def loss(b: np.ndarray) -> float:
        ce = F.cross_entropy(logits.double() + torch.from_numpy(b), labels, reduction="sum")
        return float(ce) + ridge / 2 * float((b**2).sum())

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000})
    found = _bias(logits, labels, ridge).double().numpy()
    assert loss(found) <= best.fun + 1e-6
    assert np.allclose(found, best.x, atol=1e-3)


def test_the_ridge_is_the_one_that_is_best_on_validation() -> None:
    fit = [user(1, 2.0, n=8), user(2, -1.0, n=8)]
    held = [user(3, 2.0), user(4, -1.0)]
    losses = {r: np.mean([F.cross_entropy(z + _bias(*f, r), y).item() for f, (z, y) in zip(fit, held, strict=True)]) for r in RIDGES}
    best = min(losses, key=lambda r: losses[r])
    assert best != RIDGES[0]
    test = [torch.zeros(3, 2), torch.zeros(1, 2)]
    for found, f in zip(user_bias_logits(fit, held, test), fit, strict=True):
        assert torch.allclose(found, _bias(*f, best).expand_as(found))


def test_majority_is_the_users_smoothed_rate() -> None:
    train = [Encoded(torch.tensor([1, 2]), 1, label, 0) for label in (0, 0, 1)]
    assert torch.allclose(majority_logits(train, 2, 2).exp(), torch.tensor([[2.5, 1.5]] * 2) / 4)
