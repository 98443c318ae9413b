"""The upper bound: the whole federation trains anew on the new base, on the users' own data, and pays for it.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685: adapters begin at their start. It goes
through the same rounds as any run. Under guarantee E each round is booked before it trains, in a ledger
that already holds what the old run has cost: a budget that is spent allows nothing more, and has to be raised by name.
"""

from strategies.migrators.terms import Migrator


def retrain() -> Migrator:
    """Build it. The training is the round loop's."""
    return Migrator("arXiv 2106.09685", None, same_tokenizer=False, uses_data=True, trains=True)
