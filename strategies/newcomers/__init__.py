"""The registry of ways to begin with a new user: one file and one line each."""

from collections.abc import Callable, Mapping

from configs.errors import InputError
from configs.scenario import Scenario
from strategies.newcomers.contract import Way
from strategies.newcomers.hypernet import hypernet
from strategies.newcomers.mean import mean
from strategies.newcomers.nearest import nearest
from strategies.newcomers.shared import shared
from strategies.registry import make

NEWCOMERS: dict[str, Callable[..., Way]] = {"shared": shared, "mean": mean, "nearest": nearest, "hypernet": hypernet}
ADDS = ("core", "ia3")  # kinds of which a mean of adapters is the adapter of the mean change


def build(name: str, options: Mapping[str, float]) -> Way:
    """A way by its name. Raises `InputError` for an unknown name or option."""
    return make("way", name, options, NEWCOMERS, Way)


def refuse(scenario: Scenario, name: str, way: Way) -> None:
    """Raise `InputError` where a way would break what a scenario promises, or means nothing for its private adapters."""
    guarantee, kind = scenario.privacy.guarantee, scenario.private.kind
    if way.releases and guarantee in ("user", "both"):
        raise InputError(
            f"--ways {name} sends on private adapters, and privacy.guarantee='{guarantee}' promises that no other user learns from "
            "them; use --ways shared, or a run with privacy=example"
        )
    if way.releases and guarantee != "example":
        raise InputError(
            f"--ways {name} needs private adapters that may be released, and privacy.guarantee='{guarantee}' makes none; use --ways "
            "shared, or a run with privacy=example"
        )
    if way.mixes and kind not in ADDS:
        raise InputError(
            f"--ways {name} adds private adapters up, and private.kind='{kind}' does not add (of two LoRAs the mean of the factors is "
            f"not the factor of the mean); use private.kind={ADDS[0]}, or --ways shared"
        )
