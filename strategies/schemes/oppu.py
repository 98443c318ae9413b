"""OPPU: a task adapter that others have learnt, and on top of it one adapter per user.

Tan et al., "Democratizing Large Language Models via Personalized Parameter-Efficient Fine-tuning", EMNLP 2024, arXiv 2402.04401,
section 3. The task adapter is the federation's; in the rounds nothing private exists, after them the shared adapter is frozen.
"""

from strategies.base import Phase, Scheme
from strategies.schemes.copies import only_shared


def oppu() -> Scheme:
    """Both add up; the private one trains after the last round only."""
    return Scheme(("shared", "private"), only_shared, (Phase("shared", ("shared",), applies=("shared",)),), "arXiv 2402.04401")
