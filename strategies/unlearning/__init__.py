"""The registry of ways to unlearn a user's part of what is shared: one file and one line each."""

from collections.abc import Callable, Mapping

from strategies.registry import make
from strategies.unlearning.contract import Way
from strategies.unlearning.leave import leave
from strategies.unlearning.more import more
from strategies.unlearning.replay import replay

WAYS: dict[str, Callable[..., Way]] = {
    "replay": replay,
    "continue": more,
    "leave": leave,
}


def build(name: str, options: Mapping[str, float] | None = None) -> Way:
    """Look a way up by name and give it its options; ``package.module.function`` names one that is not registered.

    Raises `InputError` for an unknown name or option.
    """
    return make("--with", name, options or {}, WAYS, Way)
