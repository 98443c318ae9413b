"""PortLLM: what an adapter adds to the old base is added to the new one unchanged.

Khan et al., "PortLLM: Personalizing Evolving Large Language Models with Training-Free and Portable Model Patches", ICLR 2025, arXiv
2410.10870, section 3: theta' = W' + dW. It holds as long as the base drifts little.

Deviation: where the new base has another depth, layers are counted from the top, as the adapter's own setting counts them.
"""

from strategies.migrators.terms import Ground, Migrator, Ways, from_top, refuse_shapes


def carry() -> Migrator:
    """Build it. Numbers stay to the bit wherever a kind's frozen factors are the same on both bases."""
    return Migrator("arXiv 2410.10870", _ways, same_shapes=True, exact=True)


def _ways(old: Ground, new: Ground) -> Ways:
    ways = from_top(old, new)
    refuse_shapes("carry", ways, old, new)
    return ways
