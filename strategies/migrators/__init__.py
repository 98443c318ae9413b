"""The registry of migrators: one file and one line each."""

from collections.abc import Callable, Mapping

from strategies.migrators.carry import carry
from strategies.migrators.distill import distill
from strategies.migrators.layers import layers
from strategies.migrators.project import project
from strategies.migrators.retrain import retrain
from strategies.migrators.terms import Migrator
from strategies.registry import make

MIGRATORS: dict[str, Callable[..., Migrator]] = {
    "carry": carry,
    "project": project,
    "layers": layers,
    "distill": distill,
    "retrain": retrain,
}


def build(name: str, options: Mapping[str, float] | None = None) -> Migrator:
    """Look a migrator up by name and give it its options; ``package.module.function`` names one that is not registered.

    Raises `InputError` for an unknown name or option.
    """
    return make("migrator", name, options or {}, MIGRATORS, Migrator)
