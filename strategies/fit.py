"""Whether an aggregator has something to do on what a scheme shares."""

from collections.abc import Iterator

from configs.errors import InputError
from configs.scenario import Scenario
from strategies import aggregators, schemes

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


def _all(names: set[str]) -> str:
    return " and ".join(sorted(names)) or "none"
