"""Soft prompt: n trained vectors before a user's tokens.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021, arXiv 2104.08691, section 2. The start is
the embeddings of randomly drawn vocabulary entries, the same for all users; unlike the other kinds it does change the
model. Name and shape [n, d] are PEFT's.
"""

import torch

from configs.scenario import Adapter
from strategies.tree import State

NAME = "prompt_embeddings"


def init_prompt(config: Adapter, embeddings_VD: torch.Tensor, generator: torch.Generator) -> State:
    """One user's start: rows of the vocabulary's embedding matrix."""
    rows = torch.randint(embeddings_VD.shape[0], (config.tokens,), generator=generator)
    return {NAME: embeddings_VD[rows.to(embeddings_VD.device)].detach().float()}
