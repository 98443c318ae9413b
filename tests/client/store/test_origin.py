"""What a private adapter makes sense on, as hashes: the same in any precision, another for another model."""

import pytest
import torch

from client.base import Base
from client.store.origin import SAMPLE, of_base


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_bases_hash_is_the_same_in_another_precision(base: Base, dtype: torch.dtype) -> None:
    assert max(value.numel() for value in base.model.parameters()) > 2 * SAMPLE  # of which only some numbers are looked at
    exact = of_base(base)
    base.model.to(dtype)
    assert of_base(base) == exact


def test_another_number_or_name_is_another_base(base: Base) -> None:
    exact, first = of_base(base), next(base.model.parameters())
    with torch.no_grad():
        first[0, 0] += 1
    assert of_base(base) != exact
