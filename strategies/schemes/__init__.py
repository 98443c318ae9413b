"""The registry of schemes: one file and one line each."""

from collections.abc import Callable

from configs.errors import unknown
from strategies.base import Scheme
from strategies.schemes.dual import dual
from strategies.schemes.fedrep import fedrep
from strategies.schemes.fedsa import fedsa
from strategies.schemes.local_only import local_only
from strategies.schemes.shared_only import shared_only

SCHEMES: dict[str, Callable[[], Scheme]] = {
    "shared_only": shared_only,
    "local_only": local_only,
    "dual": dual,
    "fedrep": fedrep,
    "fedsa": fedsa,
}


def build(name: str) -> Scheme:
    """Look a scheme up by name. Raises `InputError` for an unknown one."""
    if name not in SCHEMES:
        raise unknown("scheme", name, SCHEMES)
    return SCHEMES[name]()
