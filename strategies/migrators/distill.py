"""Trans-LoRA: the new base with fresh adapters learns the distribution of the old personal model on texts that are no user's.

Wang et al., "Trans-LoRA: towards data-free Transferable Parameter Efficient Finetuning", NeurIPS 2024, arXiv 2405.17258, section 3. The
paper's texts are made up by the old personal model. What that writes is as private as its adapter. The public texts of the data belong
to nobody, so these are taken; where there are none, texts that the old base writes with the shared adapter alone, which every user has.
Either way what is learned is post-processing of the old adapter: no budget is spent. The texts stay where they are made.

Deviations: the texts; no filter of them; the divergence KL(old || new) of whole distributions, not the likelihood of sampled answers.
"""

from strategies.migrators.terms import Migrator
from strategies.options import within


def distill(steps: float = 100, lr: float = 0.02) -> Migrator:
    """Build it. The training is `client.migration.teach`; choices among labels may go to another tokenizer."""
    count, rate = int(within("steps", steps, 1, 1e6, "options")), within("lr", lr, 0, 10, "options")
    return Migrator("arXiv 2405.17258", None, same_tokenizer=False, trains=True, texts=True, steps=count, lr=rate)
