"""What is refused before anything runs: combinations under which an epsilon would be printed that does not hold.

Each is a sentence that says why and what to do.
"""

from collections.abc import Iterator

from configs.errors import InputError
from configs.scenario import Scenario
from strategies import aggregators, schemes
from strategies.base import Scheme, personal
from strategies.privacy import accounting, budget, joint, lives


def refuse(scenario: Scenario) -> None:
    """Raise `InputError` for the first thing about a scenario that makes its guarantee void."""
    if scenario.privacy.guarantee != "off":
        accounting.check(scenario.privacy.accountant)
    for sentence in problems(scenario):
        raise InputError(sentence)


def problems(scenario: Scenario) -> Iterator[str]:
    """All that makes a scenario's guarantee void, a sentence each."""
    privacy, scheme = scenario.privacy, schemes.of(scenario)
    yield from lives.problems(scenario)
    if privacy.promises:
        yield from _answers(scenario)
    if scheme.clusters > 1 and privacy.guarantee != "off":
        yield (
            f"scheme '{scenario.scheme}' lets a user choose a cluster by the loss on the own examples, without noise, and divides by "
            "counts of users; no guarantee is worked out for it: set privacy=off or another scheme"
        )
    if privacy.of_examples:
        yield from _stopping(scenario)
    if privacy.promises_examples:
        yield from _uncovered(scenario, scheme)
    if privacy.of_users:
        yield from _of_users(scenario, scheme)
    if privacy.secure:
        yield from _secure(scenario, scheme)
    if scenario.wire.kind != "none":
        yield from _pressed(scenario)


def trained(scheme: Scheme, personalize: bool = True) -> list[str]:
    """Which of the two adapters' settings a scheme trains with: what its phases are called, the last included where there is one."""
    last = (scheme.final,) if personalize and personal(scheme) else ()
    return list(dict.fromkeys(phase.name for phase in (*scheme.phases, *last)))


def covers_private(scenario: Scenario) -> bool:
    """Whether guarantee E holds for whoever gets hold of a private adapter, and not only for what is released."""
    return "private" in scenario.privacy.example.noised or "private" not in _trained(scenario)


def _trained(scenario: Scenario) -> list[str]:
    return trained(schemes.of(scenario), scenario.personalize > 0)


def _answers(scenario: Scenario) -> Iterator[str]:
    data = scenario.data
    if data.name == "files" and data.task == "choice" and not data.labels:
        yield (
            "data.labels is empty, so the answers to choose among would be those that occur, and one example could add an answer to "
            "everybody's choices; name them, such as data.labels=[good,bad]"
        )


def _stopping(scenario: Scenario) -> Iterator[str]:
    for name in _trained(scenario):
        if budget.local(scenario, name).early_stopping:
            yield (
                f"{name}_training.early_stopping looks at a user's validation examples without noise, so no guarantee for "
                f"examples holds; set {name}_training.early_stopping=false and a number of epochs"
            )


def _uncovered(scenario: Scenario, scheme: Scheme) -> Iterator[str]:
    noised, both = scenario.privacy.example.noised, _trained(scenario)
    if "shared" in both and "shared" not in noised:
        yield (
            "privacy.example.noised leaves out 'shared': an example would go into the un-noised update, come back with the next "
            "broadcast and enter the private adapter from there, so nothing is protected; add 'shared', or set "
            "privacy.guarantee=unclaimed to run it without a promise"
        )
    if "private" in both and "private" not in noised and not _apart(scenario, scheme):
        yield (
            "privacy.example.noised leaves out 'private': the un-noised private adapter is applied while the shared one trains, so "
            "releases show its examples; add 'private', train it only after the last round (private_from = rounds), or set "
            "privacy.guarantee=unclaimed to run it without a promise"
        )


def _apart(scenario: Scenario, scheme: Scheme) -> bool:
    """Whether every release is made before any private adapter exists."""
    sending = [phase for phase in scheme.phases if phase.name == "shared"]
    never = "private" in scheme.blocks and all(p.applied("shared") and not p.applied("private") for p in sending)
    late = scenario.private_from == scenario.rounds and all(p.name in p.moves for p in scheme.phases)
    return "shared" in scheme.blocks and (never or late)


def _of_users(scenario: Scenario, scheme: Scheme) -> Iterator[str]:
    level = scenario.privacy.user
    if "shared" not in scheme.blocks:
        yield f"guarantee U is about what is released, and scheme '{scenario.scheme}' releases nothing"
    if scenario.weights != "uniform":
        yield (
            "weights must be 'uniform' under guarantee U: weighted by examples, a user's update moves the mean by as much as their "
            "number of examples says, and the number itself is released"
        )
    if scenario.aggregator.startswith(aggregators.FLOWER):
        yield (
            f"aggregator '{scenario.aggregator}' is run by Flower on single users' updates, before any noise; under guarantee U use "
            "one of ours that needs only their sum, such as fedit, fedadam or fedavgm"
        )
    elif level.mechanism != "local" and not aggregators.build(scenario.aggregator, scenario.aggregator_options).linear:
        yield (
            f"aggregator '{scenario.aggregator}' needs single users' updates and guarantee U noises only their sum; use fedit, "
            "fedadam or fedavgm, or privacy.user.mechanism=local"
        )
    if aggregators.build(scenario.aggregator, scenario.aggregator_options).controls:
        yield (
            f"aggregator '{scenario.aggregator}' keeps a user's whole control variate at home, and guarantee U would let out a clipped "
            "part of it, so that corrections no longer cancel; use fedit or fedavgm, or privacy=example"
        )
    if level.mechanism == "banded" and scenario.users_per_round and scenario.sampling != "cyclic":
        yield "privacy.user.mechanism=banded needs a user's rounds to lie apart; set sampling=cyclic"
    factors = aggregators.build(scenario.aggregator, scenario.aggregator_options).factors
    if level.mechanism == "banded" and factors(1) != factors(2):
        yield (
            f"privacy.user.mechanism=banded lets the noise of one round undo that of another, and aggregator '{scenario.aggregator}' "
            "releases other tensors in every other round; use another aggregator, or privacy.user.mechanism=gaussian"
        )
    if level.mechanism == "banded" and "scores" in scenario.privacy.waive:
        yield (
            "privacy.waive must not name 'scores' under privacy.user.mechanism=banded: to validate a round shows its adapter before it "
            "is final, and a round that is cut off and repeated would show that correlated noise twice"
        )
    if level.mechanism == "banded" and not scenario.users_per_round:
        yield "privacy.user.mechanism=banded needs rounds without a user; set users_per_round and sampling=cyclic"


def _secure(scenario: Scenario, scheme: Scheme) -> Iterator[str]:
    """What cannot be a sum of whole numbers of one size, of which nobody sees a single one."""
    privacy = scenario.privacy
    if "shared" not in scheme.blocks:
        yield f"privacy.secure hides what is released, and scheme '{scenario.scheme}' releases nothing; set privacy.secure=false"
    if scenario.aggregator.startswith(aggregators.FLOWER):
        yield (
            f"aggregator '{scenario.aggregator}' is run by Flower on single users' updates, and under privacy.secure there is only "
            "their sum; use one of ours such as fedit, fedadam or fedavgm"
        )
    elif not aggregators.build(scenario.aggregator, scenario.aggregator_options).linear:
        yield (
            f"aggregator '{scenario.aggregator}' needs single users' updates, and under privacy.secure there is only their sum; use "
            "fedit, fedadam or fedavgm"
        )
    if scenario.weights != "uniform":
        yield (
            "weights must be 'uniform' under privacy.secure: the fixed point of a sum is sized to one bound for every user, and "
            "weighted by examples an update is as large as their number"
        )
    if scenario.evaluate_along:
        yield "evaluate_along must be false under privacy.secure: masks hide a round's counters, and scores with them"
    if privacy.of_users and privacy.user.mechanism != "gaussian":
        yield (
            f"privacy.user.mechanism={privacy.user.mechanism} is noise that the server or each user adds alone; under privacy.secure "
            "the nodes add it together, which only 'gaussian' can"
        )
    if scheme.clusters > 1 and scenario.max_release_norm <= 1:
        yield (
            f"max_release_norm is {scenario.max_release_norm:g}, and scheme '{scenario.scheme}' puts a 1 beside each user's update to "
            "say which cluster it is for, so that all would be scaled down to it; set max_release_norm=2 or more"
        )
    if not privacy.of_users and scenario.max_release_norm == Scenario.max_release_norm:
        yield (
            f"max_release_norm is {scenario.max_release_norm:g}, and under privacy.secure it is what the fixed point is sized to; set "
            "it to about the largest norm of a user's update, such as max_release_norm=1"
        )


def _pressed(scenario: Scenario) -> Iterator[str]:
    """Forms of releases under which one user would move what is released by more than the bound."""
    privacy, kind = scenario.privacy, scenario.wire.kind
    if privacy.secure:
        yield (
            f"wire.kind={kind} has no part in a sum under masks, whose numbers are whole and of one size already; set wire.kind=none"
        )
    elif kind != "topk" and joint.needed(scenario):
        yield (
            f"wire.kind={kind} rounds what a node sends after its users were clipped, so that one user moves the sum by more than "
            "privacy.user.clip and the noise is too small for it; use wire.kind=topk, which comes before the clip, or "
            "privacy.user.mechanism=local, where noise comes before the rounding"
        )
