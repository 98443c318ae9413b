"""What theory says about the study, each with its reason and source, checked on the numbers.

A claim is a list of margins, and holds where none is below zero. Its control is the same margin where theory says it must not hold: a
check that nothing could fail would prove nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from simulations.synthetic.federation import Round
from simulations.synthetic.suite import BASE, ROUNDS, SEEDS, Found, rounds_of, seeds_of, settings
from simulations.synthetic.table import over
from simulations.synthetic.task import Setting
from strategies import aggregators
from strategies.aggregators import AGGREGATORS

ROUNDING = 1e-6  # of float32, against the size of a round's aggregate or the changes of a run
MEANS = ("fedit", "fedprox", "fedrot", "task_arithmetic")  # of the factors as they are sent
LOCATIONS = ("fedit", "fedprox", "scaffold", "task_arithmetic", "hetlora", "lora_fair", "flexlora", "fedask", "norm_clip",
             "trimmed_mean", "median", "geometric_median", "krum", "multi_krum", "fltrust")  # fmt: skip
SELECTIVE = ("median", "krum", "multi_krum")
ROBUST = ("norm_clip", "trimmed_mean", "median", "geometric_median", "krum", "multi_krum", "fltrust")
FIXED = ("ffa", "fedsvd")  # whose A stays in its first row space
BUILT = {name: aggregators.build(name, {}) for name in AGGREGATORS}
EXACT = tuple(name for name, built in BUILT.items() if built.exact)
WITHIN_RANK = tuple(name for name, built in BUILT.items() if "lora_delta" not in built.carried)
HONEST = [setting for setting in dict.fromkeys(settings().values()) if not setting.attackers]
Margins = Callable[[Found], Iterable[float]]


class Expectation(NamedTuple):
    """A sentence that theory says, and how to see it."""

    name: str
    reason: str
    source: str
    claim: Margins
    control: Margins
    at_end: bool = False  # of trained models and means over seeds: not for a study with fewer rounds or seeds than the usual


def every_round(names: Iterable[str], margin: Callable[[Round], float]) -> Margins:
    """A margin in every round of these aggregators, against the size of the round's ideal aggregate."""

    def margins(found: Found) -> Iterator[float]:
        for name in names:
            for setting in HONEST:
                for outcome in found.get((name, setting), []):
                    yield from (margin(row) / row.size for row in outcome.rounds)

    return margins


def at(names: Iterable[str], settings: Iterable[Setting], margin: Callable[[Any], float]) -> Margins:
    """A margin of every run of these aggregators in these settings."""
    return lambda found: [margin(outcome) for name in names for setting in settings for outcome in found.get((name, setting), [])]


def along(names: Iterable[str], axis: str, sign: float, measure: str = "error", first: int = 0) -> Margins:
    """By how much the mean over seeds rises (sign 1) or falls (-1) from each point of an axis to the next, less a hundredth."""
    points = [setting for (of, _), setting in settings().items() if of == axis][first:]

    def margins(found: Found) -> Iterator[float]:
        for name in names:
            if (name, BASE) in found:
                yield from (sign * (b - a) - 0.01 for a, b in pairwise(over(found[name, s], measure)["mean"] for s in points))

    return margins


def beyond(names: Iterable[str], margin: Callable[[float, float], float], measure: str = "error") -> Margins:
    """A margin of an aggregator's measure and fedit's, the means over seeds, at each skew above zero."""
    points = [setting for (axis, skew), setting in settings().items() if axis == "skew" and skew]

    def margins(found: Found) -> Iterator[float]:
        for name in names:
            for setting in points if (name, BASE) in found and ("fedit", BASE) in found else ():
                yield margin(over(found[name, setting], measure)["mean"], over(found["fedit", setting], measure)["mean"])

    return margins


ATTACKED, OUTVOTED = [settings()["attackers", 1]], [settings()["attackers", 10]]
ALIKE = [settings()["skew", 0.0]]
EXPECTATIONS = (
    Expectation(
        "exact ones make no error", "all A equal, or all B equal, or what a mean of factors loses goes to the base",
        "arXiv 2403.12313 section 4; arXiv 2502.01755; arXiv 2409.05976; arXiv 2410.09432",
        at(EXACT, HONEST, lambda run: ROUNDING - run.error), at(["fedit"], [BASE], lambda run: ROUNDING - run.error),
    ),
    Expectation(
        "a mean of factors loses their covariance", "sum p B_k A_k - B A = sum p (B_k - B)(A_k - A), in every round",
        "bilinearity of the product; arXiv 2305.05644",
        every_round((*MEANS, "frlora", "scaffold"), lambda row: ROUNDING * row.size - abs(row.error - row.covariance)),
        every_round(["flexlora"], lambda row: ROUNDING * row.size - abs(row.error - row.covariance)),
    ),
    Expectation(
        "users who want the same are averaged without error", "equal users take equal steps, and every mean or middle of equals is one",
        "equal inputs", at(LOCATIONS, ALIKE, lambda run: ROUNDING - run.error), at(["fedit"], [BASE], lambda run: ROUNDING - run.error),
    ),
    Expectation(
        "the error of a mean of factors grows with skew", "the covariance is that of users' drifts, which grow apart with their optima",
        "the identity above", along(MEANS, "skew", 1), along(["rolora"], "skew", 1), at_end=True,
    ),
    Expectation(
        "it shrinks as users join", "of K independent drifts the covariance has size sqrt(K - 1) / K, and what all share stays",
        "law of large numbers on the identity above", along(MEANS, "users", -1, first=1),
        along(["rolora"], "users", -1, first=1), at_end=True,
    ),
    Expectation(
        "flexlora loses the tail of the singular values", "a cut SVD is the nearest matrix of its rank",
        "Eckart & Young 1936; arXiv 2402.11505 section 3",
        every_round(["flexlora"], lambda row: ROUNDING * row.size - abs(row.error - row.tail)),
        every_round(["fedit"], lambda row: ROUNDING * row.size - abs(row.error - row.tail)),
    ),
    Expectation(
        "nobody within the rank loses less than the tail", "a lower bound on the same releases for every product of rank r",
        "Eckart & Young 1936", every_round(WITHIN_RANK, lambda row: row.error - row.tail + ROUNDING * row.size),
        every_round(["flexlora"], lambda row: row.error - 1.01 * row.tail - ROUNDING * row.size),
    ),
    Expectation(
        "nobody within the rank is better than the best of the rank", "the oracle is a minimum; a change of the base has any rank",
        "Eckart & Young 1936; arXiv 2409.05976", at(WITHIN_RANK, HONEST, lambda run: run.excess + 1e-9),
        at(["flora"], [settings()["skew", 1.0]], lambda run: run.excess), at_end=True,
    ),
    Expectation(
        "a sketch loses little more than the tail", "at most 1 + sqrt(1 + r / (p - 1)) tails of a run, r <= 8, p = 2",
        "arXiv 0909.4061 theorem 10.5 (in expectation) and a cut SVD; arXiv 2507.09990",
        at(["fedask"], HONEST, lambda run: 4 * run.relative("tail") - run.error + ROUNDING),
        at(["median"], HONEST, lambda run: 4 * run.relative("tail") - run.error + ROUNDING), at_end=True,
    ),
    Expectation(
        "control variates undo the drift of users", "the mean of corrected steps is at rest where the mean gradient is zero, not where "
        "users' ways cancel: well under fedit's excess at every skew", "arXiv 1910.06378 section 4; arXiv 1812.06127 for the control",
        beyond(["scaffold"], lambda own, fedit: 0.7 * fedit - own, "excess"),
        beyond(["fedprox"], lambda own, fedit: 0.7 * fedit - own, "excess"), at_end=True,
    ),
    Expectation(
        "ranks beyond the users' own shrink the tail", "a user's product has rank r* whatever r; what is left holds how users differ",
        "Eckart & Young 1936", along(["flexlora"], "rank", -1, first=2), along(["rolora"], "rank", -1, first=2), at_end=True,
    ),
    Expectation(
        "lora_fair is never further than the mean of factors", "a least-squares correction of B, whose start is no correction",
        "arXiv 2411.14961 section 4", every_round(["lora_fair"], lambda row: row.covariance - row.error + ROUNDING * row.size),
        every_round(["median"], lambda row: row.covariance - row.error + ROUNDING * row.size),
    ),
    Expectation(
        "an A that trains with nobody stays in its row space",
        "B A has no row outside of A's, and an SVD of it neither: the excess ends at that of the best B for the first A",
        "projection onto a row space; arXiv 2403.12313; arXiv 2505.12805",
        at(FIXED, HONEST, lambda run: 0.02 - abs(run.excess - run.floor)),
        at(["rolora", "fedit"], [BASE], lambda run: 0.02 - abs(run.excess - run.floor)), at_end=True,
    ),
    Expectation(
        "middles are biased under skew", "where users differ, the middle of their numbers, or one of them, is not their mean",
        "arXiv 2006.09365", beyond(SELECTIVE, lambda robust, fedit: robust - 1.1 * fedit),
        beyond(["lora_fair"], lambda robust, fedit: robust - 1.1 * fedit), at_end=True,
    ),
    Expectation(
        "robust ones survive one attacker of sixteen", "it is below their breakdown point; -100 times an update turns a mean around",
        "arXiv 1703.02757; arXiv 1803.01498; arXiv 1912.13445; arXiv 1911.07963",
        at(ROBUST, ATTACKED, lambda run: 0.5 - run.excess), at(["fedit"], ATTACKED, lambda run: 0.5 - run.excess), at_end=True,
    ),
    Expectation(
        "an update of the server's own survives ten attackers of sixteen", "who points away from it has no trust, however many do; "
        "a middle of users is where most of them are", "arXiv 2012.13995 section 5",
        at(["fltrust"], OUTVOTED, lambda run: 0.5 - run.excess),
        at(["median", "geometric_median"], OUTVOTED, lambda run: 0.5 - run.excess), at_end=True,
    ),
)  # fmt: skip


def verdicts(found: Found) -> list[dict[str, Any]]:
    """What became of each: ``holds`` and ``control`` (the same margin fails where it must), None where nothing of it was measured."""
    short = rounds_of(found) < ROUNDS or seeds_of(found) < SEEDS
    return [verdict(expectation, {} if short and expectation.at_end else found) for expectation in EXPECTATIONS]


def verdict(expectation: Expectation, found: Found) -> dict[str, Any]:
    """One of them."""
    margins, others = list(expectation.claim(found)), list(expectation.control(found))
    return {
        "name": expectation.name, "reason": expectation.reason, "source": expectation.source, "checks": len(margins),
        "margin": min(margins, default=None), "holds": min(margins) >= 0 if margins else None,
        "control": min(others) < 0 if others else None,
    }  # fmt: skip


def failures(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that do not hold, or whose control does."""
    return [verdict for verdict in found if verdict["holds"] is False or verdict["control"] is False]
