"""By what was promised: what is shared stays as it is, and differential privacy says how much of somebody it can hold.

Guo et al., "Certified Data Removal from Machine Learning Models", ICML 2020, arXiv 1911.03030, section 2: a model from which epsilon,
delta cannot tell one that never saw the data has had them removed. What trained with noise is that already, for whatever its guarantee
protects (`strategies.unlearning.bounds` has the numbers). Without a guarantee nothing is promised, and this is what not to forget is.
"""

from strategies.unlearning.contract import Way


def leave() -> Way:
    """Build it."""
    return Way("arXiv 1911.03030", exact=False, keeps=True)
