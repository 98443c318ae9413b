"""The registry of ways to keep what was learnt in earlier periods: one file and one line each."""

from collections.abc import Callable

from configs.scenario import Scenario
from strategies.base import Phase, Scheme
from strategies.keeping.contract import Keeping
from strategies.keeping.ewc import ewc
from strategies.keeping.olora import olora
from strategies.keeping.replay import replay
from strategies.keeping.restart import restart
from strategies.keeping.retrain import retrain
from strategies.keeping.sequential import sequential
from strategies.keeping.slow_fast import slow_fast
from strategies.registry import make
from strategies.tree import State

KEEPING: dict[str, Callable[..., Keeping]] = {
    "sequential": sequential,
    "replay": replay,
    "retrain": retrain,
    "ewc": ewc,
    "olora": olora,
    "restart": restart,
    "slow_fast": slow_fast,
}


def of(scenario: Scenario) -> Keeping:
    """What a scenario names. Raises `InputError` for an unknown name or option."""
    return make("life.keep", scenario.life.keep, scenario.life.keep_options, KEEPING, Keeping)


def around(scheme: Scheme, keeping: Keeping) -> Scheme:
    """The scheme with what is kept applied in all of its phases, and held to in those that train what is private."""
    if keeping.view is Keeping("").view and keeping.penalty is None:
        return scheme

    def phase(found: Phase) -> Phase:
        penalty = keeping.penalty if "private" in found.moves else None
        return found._replace(view=_after(keeping.view, found.view), penalty=penalty)

    return scheme._replace(phases=tuple(map(phase, scheme.phases)), final=phase(scheme.final))


def _after(first: Callable[[State], State], then: Callable[[State], State]) -> Callable[[State], State]:
    return lambda state: then(first(state))
