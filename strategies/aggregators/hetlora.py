"""HetLoRA: both factors padded with zeros to the shared rank and averaged, the more by whom the larger the product.

Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024, arXiv 2401.06432, section 4.

    w_k ~ p_k ||B_k A_k||_F  in each module,    A <- sum_k w_k A_k / sum_k w_k,    B likewise

Deviations: the weights p_k come in, so that equal norms give FedIT; users do not prune their own ranks. Biased as FedIT is.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from strategies.base import Aggregator, Release
from strategies.lora import padded, pairs, product_norm, trained, unpaired
from strategies.tree import State, add, weighted_mean

TINY = 1e-30  # where all products are zero, the p_k decide


def hetlora() -> Aggregator:
    """Build HetLoRA. Not linear: a weight is known only with the user's product."""
    return Aggregator(lambda _: {}, weighted_by_norm, lambda _: ("lora_A", "lora_B"), linear=False, paper="arXiv 2401.06432",
                      individual=True, hetero_rank=True, paired=True)  # fmt: skip


def weighted_by_norm(memory: State, shared: State, releases: Iterable[Release]) -> tuple[State, State]:
    """Stream the releases into a weighted sum of each module's factors; what is no pair of factors is averaged."""
    modules = pairs(shared)
    sums: State = {}
    mass: dict[tuple[str, str], Tensor] = {}

    def each() -> Iterator[tuple[float, State]]:
        for release in filter(lambda r: r.update, releases):
            for pair in modules:
                own = [trained(shared, release, name) for name in pair]
                weight = release.weight * (product_norm(*own) + TINY)
                mass[pair] = mass[pair] + weight if pair in mass else weight
                for name, value in zip(pair, own, strict=True):
                    part = weight * padded(value, shared[name].double())
                    sums[name] = sums[name] + part if name in sums else part
            yield release.weight, unpaired(release.update)

    after = add(shared, weighted_mean(each()))
    return memory, after | {name: (sums[name] / mass[pair]).to(shared[name].dtype) for pair in mass for name in pair}
