"""Sums of scores give the means that rows give."""

import pytest

from strategies import riding


def test_the_means_of_sums_are_the_means_of_rows_and_who_has_no_number_is_not_counted() -> None:
    rows = [
        {"user": "a", "train": 3, "shared.nll": 1.0, "shared.auc": None, "base.nll": 9.0},
        {"user": "b", "train": 4, "shared.nll": 2.0, "shared.auc": 0.75},
        {"user": "c", "train": 5},
    ]
    sums = riding.sums(rows)
    assert sums == {"shared.nll": 3.0, "shared.nll.users": 2.0, "shared.auc": 0.75, "shared.auc.users": 1.0}
    assert riding.means(sums) == {"shared": {"nll": 1.5, "auc": 0.75}} and set(sums) <= set(riding.SUMS)


@pytest.mark.parametrize("users", [0.0, -3.0])
def test_a_count_of_nobody_is_no_mean(users: float) -> None:
    assert riding.means({"shared.nll": 3.0, "shared.nll.users": users}) == {}
