"""Whether an aggregator has something to do on what a scheme shares."""

from collections.abc import Iterator

from configs.errors import InputError
from configs.scenario import Scenario
from strategies import aggregators, schemes
from strategies.base import Scheme, as_it_ended

FACTORS = ("lora_A", "lora_B")


def refuse(scenario: Scenario) -> None:
    """Raise `InputError` where a scenario's aggregator would find nothing to work on."""
    for sentence in problems(scenario):
        raise InputError(sentence)


def problems(scenario: Scenario) -> Iterator[str]:
    """What keeps the aggregator from its work, a sentence each. A scheme that shares nothing has none: nobody asks it to aggregate."""
    scheme, chosen = schemes.of(scenario), aggregators.build(scenario.aggregator, scenario.aggregator_options)
    kinds, said = {"shared": scenario.shared.kind, "private": scenario.private.kind}, f"aggregator '{scenario.aggregator}'"
    trained = {factor for number in (1, 2) for factor in chosen.factors(number)}
    own = [block for block in scheme.blocks if block not in scheme.twins]
    common = {block: {f for f in FACTORS if scheme.owner(block, f"x.{f}.weight") == "shared"} for block in own}
    for field, value in scheme.needs:
        if (found := getattr(scenario, field)) != value:
            yield f"scheme '{scenario.scheme}' needs {field}={value}, not {found}"
    if scheme.clusters > 1 and scenario.aggregator.startswith(aggregators.FLOWER):
        yield f"{said} knows of one adapter, and scheme '{scenario.scheme}' has several; use one of ours, such as fedit"
    if scheme.twins and chosen.mutates_base:
        yield f"{said} changes the base under the adapters, and scheme '{scenario.scheme}' keeps copies of them; use fedit"
    for block, factors in common.items():
        if kinds[block] == "lora" and factors and not factors & trained:
            yield f"{said} trains {_all(trained)} only, and scheme '{scenario.scheme}' shares {_all(factors)} of {block}; use fedit"
    lr = scenario.shared_training.lr
    if chosen.pull * lr >= 2 and "shared" in scheme.blocks:
        yield f"{said} pulls users by {chosen.pull:g}, beyond where they began; use less than {2 / lr:g}, 2 / shared_training.lr"
    if chosen.paired and "shared" in common and kinds["shared"] != "lora":
        yield f"{said} works on LoRA's two factors, and shared.kind={kinds['shared']} has none; use fedit, which is exact there"
    if chosen.paired and "shared" in common and common["shared"] != set(FACTORS):
        yield f"{said} works on LoRA's two factors, and scheme '{scenario.scheme}' shares {_all(common['shared'])} only; use fedit"

    if chosen.rooted and not scenario.root_users:
        yield f"{said} weighs users by an update of the server's own data; name the users whose data that is, such as root_users=[ann]"
    if scenario.root_users and not chosen.rooted:
        yield f"root_users are asked by aggregators that weigh the others by them, and {said} does not; leave root_users=[]"
    if chosen.rooted and scheme.clusters > 1:
        yield f"{said} has one direction to trust, and scheme '{scenario.scheme}' has several adapters; use another scheme or fedit"
    if scenario.wire.kind != "none":
        yield from _pressed(scenario, scheme, said)
    if chosen.controls and "shared" in scheme.blocks:
        yield from _steps(scenario, said)
        if not _plain(scheme, common):
            yield f"{said} corrects the steps of the shared adapter, and scheme '{scenario.scheme}' sends something else; use fedit"


def _steps(scenario: Scenario, said: str) -> Iterator[str]:
    """Where the way that a user went, over how many steps and how long they were, is not the mean of their gradients."""
    why = "reads a user's mean gradient off the way that plain steps took"
    for name, wanted in (("optimizer", "sgd"), ("momentum", 0), ("weight_decay", 0), ("prior", 0), ("early_stopping", False)):
        if (found := getattr(scenario.shared_training, name)) != wanted:
            yield f"{said} {why}; set shared_training.{name}={str(wanted).lower()}, not {found}"
    if not scenario.shared_training.lr:
        yield f"{said} {why}; set shared_training.lr above 0"


def _pressed(scenario: Scenario, scheme: Scheme, said: str) -> Iterator[str]:
    """Where a release is no update that could be rounded, or what was left out of one round has no meaning in the next."""
    wire, chosen = scenario.wire, aggregators.build(scenario.aggregator, scenario.aggregator_options)
    if scheme.clusters > 1:
        yield f"wire.kind={wire.kind} would round the counts by which scheme '{scenario.scheme}' divides; set wire.kind=none"
    if chosen.controls:
        yield f"{said} keeps a user's whole control variate at home, and wire.kind={wire.kind} sends another; set wire.kind=none"
    if wire.kind == "topk" and wire.feedback and chosen.paired:
        yield (
            f"{said} writes the factors anew or lets them take turns, so that what wire.kind=topk has left out of one round does not "
            "fit the next; set wire.feedback=false, or use fedit, fedavgm or fedadam"
        )


def _plain(scheme: Scheme, common: dict[str, set[str]]) -> bool:
    """Whether what is sent is where training of the shared adapter itself has ended."""
    ends = all(phase.end is as_it_ended and not (phase.pull and "shared" in phase.moves) for phase in scheme.phases)
    return ends and scheme.clusters == 1 and not any(factors for block, factors in common.items() if block != "shared")


def _all(names: set[str]) -> str:
    return " and ".join(sorted(names)) or "none"
