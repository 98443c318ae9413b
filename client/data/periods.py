"""Users' examples cut into periods. A privacy unit (a document, a rating) lies whole in one of them.

U units of a user, in order of time.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from client.data.split import part
from client.data.types import Encoded, Splits
from configs.errors import InputError
from configs.life import Life
from configs.scenario import Data


def of_units(times_U: Sequence[float], sizes_U: Sequence[int], life: Life, span: tuple[float, float]) -> list[int]:
    """The period, counted from 1, of each of a user's units, which never falls.

    By examples: equal counts, a unit of several examples by its middle one. By time: equal parts of ``span``; what lies outside of it
    belongs to the first period or the last. There a unit's period depends on nothing but its own time.

    >>> of_units([0.0] * 5, [1] * 5, Life(periods=2), (0.0, 0.0))
    [1, 1, 2, 2, 2]
    >>> of_units([0.0, 4.9, 5.0, 12.0], [1] * 4, Life(periods=2, by="time"), (0.0, 10.0))
    [1, 1, 2, 2]
    """
    if life.by == "time":
        start, end = span
        shares = [(time - start) / (end - start) for time in times_U]
    else:
        shares = [(last - size / 2) / sum(sizes_U) for last, size in zip(accumulate(sizes_U), sizes_U, strict=True)]
    return [min(max(int(share * life.periods), 0), life.periods - 1) + 1 for share in shares]


def span(times: Iterable[float], life: Life) -> tuple[float, float]:
    """Where periods by time begin and end: where the scenario says, or at the data's own first and last time.

    Raises `InputError` where that is one moment.
    """
    if life.by != "time":
        return 0.0, 0.0
    found = sorted(times)
    start, end = (life.start, life.end) if life.end > life.start else (found[0], found[-1]) if found else (0.0, 0.0)
    if end <= start:
        raise InputError(
            "life.by=time needs examples of different times, and these have one; name data.fields.time, or set by=examples"
        )
    return start, end


def splits(encoded: Sequence[Encoded], period_U: Sequence[int], data: Data, periods: int) -> list[Splits]:
    """A user's splits of each period, each by the rule of `split.part`. One of fewer than two examples is empty."""
    parts = [tuple(e for e in encoded if period_U[e.unit] == period) for period in range(1, periods + 1)]
    return [part(found, data) if len(found) > 1 else Splits((), (), ()) for found in parts]
