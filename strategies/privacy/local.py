"""Local privacy: each user's node clips and noises the user's own release before it leaves, so that no server has to be trusted.

The central mechanism of `user_level` over one user, with a denominator of 1. Neighbours: the user's update is replaced by zeros
(zero-out, as everywhere here), which moves what is noised by at most the bound S. Where any update may be replaced by any other
(replace-one, the usual relation of local privacy) it moves by 2 S: book the event with half the noise. The noise of a mean over n users
has n times the variance that a trusted server's would have.
"""

from configs.errors import InputError
from strategies.base import Release
from strategies.privacy.events import Event
from strategies.privacy.noise import Noise
from strategies.privacy.user_level import sum_and_noise
from strategies.tree import State


def privatized(release: Release, bound: float, noise_multiplier: float, noise: Noise, like: State) -> tuple[Release, Event]:
    """One user's release of weight 1 and norm at most ``bound``, with noise ``noise_multiplier * bound``, and what it costs the user.

    A user who has nothing to say sends noise of the same shape. Metrics stay at home. Raises `InputError` for a sum of several users,
    or a weight other than 1.
    """
    if release.users != 1:
        raise InputError(f"users is {release.users}; under local privacy a release is noised before it is added to others")
    return sum_and_noise([release], bound, noise_multiplier, 1.0, noise, like)
