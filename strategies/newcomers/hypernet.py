"""From what users say about themselves to their private adapters: a hypernetwork with one linear layer.

After Profile-to-PEFT (arXiv 2510.16282): a profile's embedding in, an adapter out, so that a new user costs one forward pass. Here,
with profiles x_k and released adapters y_k of K users,

    theta(x) = mean y + W (x - mean x) / std x,    W = argmin sum_k |theta(x_k) - y_k|^2 + r |W|^2

r is the one, of a few, with the least error on users left out one by one, which ridge regression has in closed form: the residual over
1 - h_kk. "No profile says anything" (r infinite, theta the mean) is among them. Deviations: the paper trains a deep network through the
language model's loss on users' texts; the mean over texts of a user is an embedding of private data, and so is not used here.

A profile is what a user chooses to publish, such as age and occupation; it is no example and no guarantee covers it. The newcomer's
stays at home: what is sent is (mean y, mean x, std x, W).

K users, E numbers of a profile, P of an adapter.
"""

import torch
from torch import Tensor

from strategies.newcomers.contract import Asked, Way
from strategies.tree import State

RIDGES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # times the mean squared length of a profile
CENTRE, SCALE, MEAN, SLOPE = "profile/centre", "profile/scale", "mean/", "slope/"


def hypernet() -> Way:
    """Begin with what people who describe themselves alike have."""
    return Way("arXiv 2510.16282", _prepare, _begin, releases=True, profiles=True, mixes=True)


def _prepare(_start: State, released: State, profiles_KE: Tensor) -> State:
    centre_E, scale_E = profiles_KE.double().mean(0), profiles_KE.double().std(0, correction=0)
    scale_E = torch.where(scale_E > 0, scale_E, torch.ones_like(scale_E))
    x_KE = (profiles_KE.double() - centre_E) / scale_E
    sizes = [value[0].numel() for value in released.values()]
    y_KP = torch.cat([value.double().flatten(1) for value in released.values()], 1)
    slope_EP = ridge(x_KE, y_KP - y_KP.mean(0))
    sent = {CENTRE: centre_E.float(), SCALE: scale_E.float()}
    for (name, value), slope_Ep in zip(released.items(), slope_EP.split(sizes, 1), strict=True):
        sent[MEAN + name] = value.double().mean(0).to(value.dtype)
        sent[SLOPE + name] = slope_Ep.reshape(-1, *value.shape[1:]).float()
    return sent


def _begin(sent: State, asked: Asked) -> State:
    assert asked.profile_E is not None
    x_E = (asked.profile_E - sent[CENTRE]) / sent[SCALE]
    means = {name.removeprefix(MEAN): value for name, value in sent.items() if name.startswith(MEAN)}
    return {name: value + torch.tensordot(x_E.to(value), sent[SLOPE + name].to(value), 1) for name, value in means.items()}


def ridge(x_KE: Tensor, y_KP: Tensor) -> Tensor:
    """W [E, P] for centred x and y; zeros where the mean alone does better on users that are left out."""
    users = len(x_KE)
    value_K, vector_KK = torch.linalg.eigh(x_KE @ x_KE.T)
    value_K, turned_KP = value_K.clamp(min=0), vector_KK.T @ y_KP
    best, found = float(left_out(torch.zeros_like(value_K), vector_KK, y_KP, turned_KP)), torch.zeros(x_KE.shape[1], y_KP.shape[1])
    for strength in RIDGES if users > 2 else ():
        r = strength * float(value_K.sum()) / users
        error = float(left_out(value_K / (value_K + r), vector_KK, y_KP, turned_KP)) if r else best
        if error < best:
            best, found = error, x_KE.T @ (vector_KK @ (turned_KP / (value_K + r).unsqueeze(1)))
    return found


def left_out(kept_K: Tensor, vector_KK: Tensor, y_KP: Tensor, turned_KP: Tensor) -> Tensor:
    """Sum of squared errors on users left out one by one, where the fit keeps so much of each direction, and the mean besides."""
    hat_K = (vector_KK.square() * kept_K).sum(1) + 1 / len(y_KP)
    left_KP = y_KP - vector_KK @ (kept_K.unsqueeze(1) * turned_KP)
    return (left_KP / (1 - hat_K).clamp(min=1e-6).unsqueeze(1)).square().sum()
