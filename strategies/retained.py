"""How much of what personal models had gained is left on another base.

    retained gain = (score(theta' on W') - score(W')) / (score(theta on W) - score(W)),   score = - nats per token or choice

One is all of it, zero is none, below zero the migrated model is worse than the new base alone. U users.
"""

from typing import Any

from numpy.typing import ArrayLike

from strategies.metrics import TIE, differences, mean

SMALL = 0.01  # nats: a user who had gained less says nothing in a ratio


def retained(base_old_U: ArrayLike, personal_old_U: ArrayLike, base_new_U: ArrayLike, personal_new_U: ArrayLike) -> dict[str, Any]:
    """Losses per user in, lower is better. Out:

    ``mean``: of the users' own ratios, over the ``counted`` who had gained more than `SMALL`; ``cohort``: ratio of the sums over all;
    ``harmed``: for how many users the model on the new base is worse than that base alone; ``harmed_before``: the same on the old one.
    A ratio without anything below it is None.
    """
    old_U, new_U = differences(base_old_U, personal_old_U), differences(base_new_U, personal_new_U)
    had_U, whole = old_U > SMALL, float(old_U.sum())
    return {
        "mean": mean(new_U[had_U] / old_U[had_U]) if had_U.any() else None,
        "counted": int(had_U.sum()),
        "cohort": float(new_U.sum()) / whole if whole > TIE else None,
        "harmed": int((new_U < 0).sum()),
        "harmed_before": int((old_U < 0).sum()),
    }
