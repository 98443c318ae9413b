"""Those who judge alike: a mixture of released private adapters by how well each fits the newcomer's own few examples.

In the manner of Mansour et al., "Three Approaches for Personalization with Applications to Federated Learning", arXiv 2002.10619
(user clustering: each takes the one of J models that fits best), with a mixture in place of the best one. If users are draws from one
population, the J candidates with shares p_j are a prior, and the mean of its posterior after losses L_j (nats, summed) is

    theta = sum_j w_j theta_j,    w_j ~ p_j exp(-c L_j)

Without examples L = 0, and theta is the mean of all that was released. Candidates are the centres of J clusters of the released
adapters (k-means, p_j the share of users in each): single adapters under guarantee E are mostly noise, which a centre averages out.

The newcomer's losses are noised, too. c is the positive part of James and Stein's factor ("Estimation with Quadratic Loss", 1961) for
J - 1 free numbers with noise of standard deviation s: where nothing can be told from noise, nothing is chosen.

    c = max(0, 1 - (J - 3) s^2 / |L - mean L|^2)

J candidates, K users, P numbers.
"""

import torch
from torch import Tensor

from configs.errors import InputError
from strategies.newcomers.contract import Asked, Verdict, Way
from strategies.tree import State

SHARES = "shares"  # [J], beside the candidates
TURNS = 50  # of k-means, at most


def nearest(candidates: float = 4, share: float = 0.1, bound: float = 1.0) -> Way:
    """Begin with a mixture of what others have, by how well each fits the examples; ``candidates``: so many centres, 0: everyone."""
    if candidates < 0 or candidates != int(candidates):
        raise InputError(f"candidates of nearest must be 0 (everyone) or a count, got {candidates:g}")
    if not 0 < share < 1:
        raise InputError(f"share of nearest must be above 0 and below 1, got {share:g}")
    if not bound > 0:
        raise InputError(f"bound of nearest must be above 0, got {bound:g}")

    def prepare(_start: State, released: State, _profiles_KE: Tensor) -> State:
        flat_KP = torch.cat([v.double().flatten(1) for v in released.values()], 1)
        nearest_K = clusters(flat_KP, min(int(candidates) or len(flat_KP), len(flat_KP)))
        member_JK = torch.nn.functional.one_hot(nearest_K).T.double()
        mean_JK = member_JK / member_JK.sum(1, keepdim=True)
        centres = {n: torch.tensordot(mean_JK, v.double(), 1).to(v.dtype) for n, v in released.items()}
        return centres | {SHARES: member_JK.mean(1).float()}

    return Way("arXiv 2002.10619", prepare, _begin, releases=True, examples=True, mixes=True, share=share, bound=bound)


def _begin(sent: State, asked: Asked) -> State:
    centres = {name: value for name, value in sent.items() if name != SHARES}
    weight_J = weights(sent[SHARES], asked.judge(centres))
    return {name: torch.tensordot(weight_J, value.double(), 1).to(value.dtype) for name, value in centres.items()}


def weights(shares_J: Tensor, verdict: Verdict) -> Tensor:
    """The posterior's weights, float64 [J], which add up to one."""
    loss_J = verdict.losses_J.double() - verdict.losses_J.double().mean()
    size = float(loss_J.square().sum())
    certain = max(0.0, 1 - max(len(loss_J) - 3, 0) * verdict.noise**2 / size) if size else 0.0
    return (shares_J.double().log() - certain * loss_J).softmax(0)


def clusters(x_KP: Tensor, count: int) -> Tensor:
    """The cluster of each row, int64 [K], none of them empty: k-means from rows that lie farthest apart. Draws nothing."""
    first = int((x_KP - x_KP.mean(0)).square().sum(1).argmin())
    chosen = [first]
    for _ in range(count - 1):
        away_K = torch.cdist(x_KP, x_KP[chosen]).min(1).values
        if not float(away_K.max()):
            break  # fewer distinct rows than clusters
        chosen.append(int(away_K.argmax()))
    found_K = torch.cdist(x_KP, x_KP[chosen]).argmin(1)
    for _ in range(TURNS):
        centres_JP = torch.stack([x_KP[found_K == j].mean(0) for j in found_K.unique()])
        after_K = torch.cdist(x_KP, centres_JP).argmin(1)
        if bool((after_K == found_K).all()):
            break
        found_K = after_K
    return found_K.unique(return_inverse=True)[1]
