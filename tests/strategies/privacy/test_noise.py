"""Noise is standard normal; keyed noise is drawn twice the same, entropic noise never."""

import math
import time

import numpy as np
import pytest
import torch
from scipy import stats

from strategies.privacy.noise import CHUNK, Noise, entropic, keyed, standard

SOURCES = {"keyed": lambda: keyed(0, 1, "noise"), "entropic": entropic}
ALPHA = 1e-7  # so that chance fails nobody's build


@pytest.fixture(params=SOURCES)
def noise(request: pytest.FixtureRequest) -> Noise:
    """Each source."""
    return SOURCES[request.param]()


def test_numbers_are_standard_normal_and_of_no_other_scale(noise: Noise) -> None:
    drawn = noise(torch.Size([40_000])).numpy()
    assert stats.kstest(drawn, "norm").pvalue > ALPHA
    for wrong in (2 / 3, 3 / 2, 1.1):
        assert stats.kstest(drawn, "norm", (0, wrong)).pvalue < ALPHA


def test_numbers_are_independent_of_those_beside_them_and_of_the_other_half(noise: Noise) -> None:
    drawn = noise(torch.Size([40_000])).numpy()
    for lag in (1, 2, 20_000):
        for a, b in ((drawn[:-lag], drawn[lag:]), (drawn[:-lag] ** 2, drawn[lag:] ** 2)):
            assert abs(np.corrcoef(a, b)[0, 1]) < 6 / math.sqrt(len(a))


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 5), (2, 1, 7)])
def test_any_shape_is_filled_with_finite_float64(noise: Noise, shape: tuple[int, ...]) -> None:
    drawn = noise(torch.Size(shape))
    assert drawn.shape == shape
    assert drawn.dtype == torch.float64
    assert bool(drawn.isfinite().all())
    assert len(set(drawn.flatten().tolist())) == math.prod(shape)


def test_keyed_noise_depends_on_its_key_and_goes_on() -> None:
    shape = torch.Size([4])
    first, again, other = keyed(0, 1), keyed(0, 1), keyed(0, 2)
    one, two = first(shape), first(shape)
    assert torch.equal(one, again(shape))
    assert torch.equal(two, again(shape))
    assert not torch.equal(one, two)
    assert not torch.equal(one, other(shape))


def test_entropic_noise_does_not_repeat_within_a_process_whatever_torchs_seed() -> None:
    torch.manual_seed(0)
    one = entropic()(torch.Size([1000]))
    torch.manual_seed(0)
    assert not set(one.tolist()) & set(entropic()(torch.Size([1000])).tolist())


def test_entropic_noise_makes_a_million_numbers_in_about_a_second_over_the_edge_of_a_chunk() -> None:
    begun = time.process_time()
    drawn = entropic()(torch.Size([CHUNK + 3]))
    assert time.process_time() - begun < 3, "about three times what it takes"
    assert drawn.unique().numel() == CHUNK + 3


def test_a_state_of_noise_does_not_depend_on_the_order_of_its_names() -> None:
    like = {"b": torch.zeros(2), "a": torch.zeros(3, 2)}
    one, two = standard(like, keyed(1)), standard(dict(reversed(like.items())), keyed(1))
    assert {name: value.shape for name, value in one.items()} == {"a": (3, 2), "b": (2,)}
    assert all(torch.equal(one[name], two[name]) for name in like)
