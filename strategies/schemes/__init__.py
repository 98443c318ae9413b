"""The registry of schemes: one file and one line each."""

from collections.abc import Callable, Mapping

from configs.scenario import Scenario
from strategies.base import Scheme
from strategies.registry import make
from strategies.schemes.apfl import apfl
from strategies.schemes.ditto import ditto
from strategies.schemes.dual import dual
from strategies.schemes.fedalt import fedalt
from strategies.schemes.fedbabu import fedbabu
from strategies.schemes.feddpa import feddpa_f, feddpa_t
from strategies.schemes.fedper import fedper
from strategies.schemes.fedrep import fedrep
from strategies.schemes.fedsa import fedsa
from strategies.schemes.finetune import finetune
from strategies.schemes.ifca import ifca
from strategies.schemes.local_only import local_only
from strategies.schemes.mr_mtl import mr_mtl
from strategies.schemes.oppu import oppu
from strategies.schemes.per_fedavg import per_fedavg
from strategies.schemes.pfedme import pfedme
from strategies.schemes.shared_only import shared_only

SCHEMES: dict[str, Callable[..., Scheme]] = {
    "shared_only": shared_only,
    "local_only": local_only,
    "dual": dual,
    "apfl": apfl,
    "ditto": ditto,
    "fedalt": fedalt,
    "fedbabu": fedbabu,
    "feddpa_f": feddpa_f,
    "feddpa_t": feddpa_t,
    "fedper": fedper,
    "fedrep": fedrep,
    "fedsa": fedsa,
    "finetune": finetune,
    "ifca": ifca,
    "mr_mtl": mr_mtl,
    "oppu": oppu,
    "per_fedavg": per_fedavg,
    "pfedme": pfedme,
}


def build(name: str, options: Mapping[str, float]) -> Scheme:
    """Look a scheme up by name and give it its options; ``package.module.function`` names one that is not registered.

    Raises `InputError` for an unknown name or option.
    """
    return make("scheme", name, options, SCHEMES, Scheme)


def of(scenario: Scenario) -> Scheme:
    """The scheme that a scenario names."""
    return build(scenario.scheme, scenario.scheme_options)
