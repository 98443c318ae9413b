"""What is left of a gain, on numbers that can be worked out by hand."""

import pytest

from configs.errors import InputError
from strategies.migrators import MIGRATORS, build
from strategies.retained import retained


def test_a_ratio_is_one_where_everything_stays_and_below_zero_where_the_bare_base_is_better() -> None:
    assert retained([1.0, 1.0], [0.5, 0.8], [1.0, 1.0], [0.5, 0.8])["cohort"] == 1.0
    found = retained([1.0, 1.0, 1.0], [0.5, 0.75, 1.1], [2.0, 2.0, 2.0], [1.75, 2.125, 1.9])
    assert found["mean"] == pytest.approx((0.5 - 0.5) / 2) and found["counted"] == 2  # who had gained nothing says nothing
    assert found["cohort"] == pytest.approx((0.25 - 0.125 + 0.1) / (0.5 + 0.25 - 0.1))
    assert (found["harmed"], found["harmed_before"]) == (1, 1)


def test_no_gain_has_no_ratio() -> None:
    found = retained([1.0], [1.0], [1.0], [0.5])
    assert found["mean"] is None and found["cohort"] is None


def test_a_migrator_that_uses_data_trains_and_one_that_does_not_train_says_its_ways() -> None:
    for name, make in MIGRATORS.items():
        method = make()
        assert method.trains or not method.uses_data, name
        assert (method.ways is None) == method.trains and method.paper.startswith("arXiv"), name
    assert [n for n, make in MIGRATORS.items() if make().uses_data] == ["retrain"]


@pytest.mark.parametrize(("name", "options", "said"), [
    ("cary", {}, "did you mean 'carry'?"), ("project", {"rnk": 3.0}, "did you mean 'rank'?"),
    ("project", {"rank": 0.0}, "options.rank must be between 1 and"), ("carry", {"rank": 3.0}, "unknown option of carry 'rank'"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(name: str, options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError) as told:
        build(name, options)
    assert said in str(told.value)
