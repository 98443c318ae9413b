"""Exact: the run once more from its start, without them.

Cao & Yang, "Towards Making Systems Forget with Machine Unlearning", IEEE S&P 2015; Bourtoule et al., "Machine Unlearning", IEEE S&P
2021, arXiv 1912.03817, section III: forgotten is what training without it would have given, and training without it gives that.

    new = run(scenario, seed, data of all others)

Every draw is keyed by (seed, round, user, purpose), so that others' draws do not depend on who is forgotten, and nothing of the old
run is an input.
"""

from strategies.unlearning.contract import Way


def replay() -> Way:
    """Build it."""
    return Way("arXiv 1912.03817", exact=True, keeps=False)
