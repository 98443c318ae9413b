"""Which of a scenario's tensors are whose: laid out on a base, by the scheme and the aggregator.

A tensor is named "block/name", in a shared state by PEFT's own name.
"""

from dataclasses import dataclass, field, replace

import torch

from client import base as bases
from client.adapters.layout import Layout, layout
from configs.scenario import Scenario
from strategies import aggregators, drift, keeping, schemes
from strategies.aggregators.scaffold import CONTROL, OWN
from strategies.base import Owner, Phase, released
from strategies.keeping.contract import MEMORY, NOTES, PERIOD, SAT_OUT, SEEN, Keeping, unchanged
from strategies.schemes.ifca import MEMBERS, slot
from strategies.tree import State

BESIDE: dict[str, Owner] = {CONTROL: "shared", OWN: "frozen", MEMORY: "frozen"}  # blocks that no adapter is, and no training moves


@dataclass(frozen=True)
class Split:
    """Which of a scenario's tensors are whose."""

    layouts: tuple[Layout, ...]
    scheme: schemes.Scheme
    aggregator: aggregators.Aggregator
    spare: tuple[Layout, ...] = ()  # further clusters' adapters: their tensors travel, and stand in for the shared one's where applied
    memory: State = field(default_factory=dict)  # what is remembered of earlier periods, at its start

    def owner(self, key: str) -> Owner:
        """Who keeps the tensor "block/name"."""
        block, _, name = key.partition("/")
        return BESIDE[block] if block in BESIDE else self.scheme.owner(block, name)

    def released(self, key: str, round_: int) -> bool:
        """Whether a tensor is trained and released in a round: shared, and if it is a LoRA's, one of the aggregator's factors."""
        return self.owner(key) == "shared" and released(key, self.aggregator.factors(round_))

    def name(self, key: str) -> str:
        """What "block/name" is called on its way: PEFT's own name for the shared block, the key itself for what else is shared."""
        return key.removeprefix("shared/")

    def key(self, name: str) -> str:
        """The "block/name" of a tensor that travels: undoes `name`."""
        return name if "/" in name else f"shared/{name}"

    def travels(self, key: str) -> bool:
        """Whether a tensor is ever released or carried by the server; one that never is, every node makes from the seed."""
        carried = self.owner(key) == "shared" and released(key, self.aggregator.carried)
        return self.released(key, 1) or self.released(key, 2) or carried

    def moves(self, key: str, phase: Phase, round_: int) -> bool:
        """Whether a tensor trains in a phase. Of a copy that is sent in the shared adapter's place, what that adapter would train."""
        if key.partition("/")[0] in BESIDE:
            return False
        owner, sent = self.owner(key), twin(key) if phase.name == "shared" and self.is_twin(key) else key
        return owner in phase.moves and (self.owner(sent) != "shared" or self.released(sent, round_))

    def is_twin(self, key: str) -> bool:
        """Whether a tensor is of a copy of the shared adapter."""
        return key.partition("/")[0] in self.scheme.twins

    def kept(self, key: str) -> bool:
        """Whether a user's node stores the tensor."""
        return self.owner(key) == "private" or self.is_twin(key) or key.startswith((f"{OWN}/", f"{MEMORY}/"))

    @property
    def has_private(self) -> bool:
        """Whether any tensor is a user's own."""
        return any(self.owner(key) == "private" for key in self.start())

    def own(self, start: State, received: State) -> State:
        """What is kept of a user who has nothing yet; ``received`` is what all have in common."""
        return {k: received.get(twin(k), v) if self.is_twin(k) else v for k, v in start.items() if self.kept(k)}

    def model(self, state: State) -> tuple[tuple[Layout, ...], State]:
        """The adapters that make up a user's own model, and their tensors, of all that the user has."""
        return tuple(x for x in self.layouts if self.scheme.final.applied(x.block)), self.scheme.final.view(state)

    def start(self) -> State:
        """Every tensor at its start."""
        found = {f"{x.block}/{n}": v for x in (*self.layouts, *self.spare) for n, v in x.start.items()}
        device = next(iter(found.values())).device
        if self.scheme.clusters > 1:
            found[MEMBERS] = torch.zeros(self.scheme.clusters, device=device)
        if self.aggregator.controls:
            steered = {key: v for key, v in found.items() if key.startswith("shared/") and self.released(key, 1)}
            found |= {key.replace("shared", block, 1): torch.zeros_like(v) for block in (CONTROL, OWN) for key, v in steered.items()}
        return found | self.memory | {f"private/{name}": torch.tensor([value], device=device) for name, value in self.scheme.own}

    def shared_start(self) -> State:
        """The shared adapter before the first round, under PEFT's names: what the server begins with."""
        return {self.name(key): v.cpu() for key, v in self.start().items() if self.travels(key)}


def split(scenario: Scenario, base: bases.Base) -> Split:
    """Lay the scenario's adapters out on a base."""
    scheme = schemes.of(scenario)
    configs = {"shared": scenario.shared, "private": scenario.private}
    aggregator = aggregators.build(scenario.aggregator, scenario.aggregator_options)
    mutable = "lora_delta" in aggregator.carried
    own = [block for block in scheme.blocks if block not in scheme.twins]
    layouts = tuple(layout(block, configs[block], base, scenario.seed, mutable and block == "shared") for block in own)
    spare = tuple(layout(slot(j), scenario.shared, base, scenario.seed) for j in range(1, scheme.clusters))
    keep = keeping.of(scenario)
    found = Split(twinned(layouts, scheme), keeping.around(scheme, keep), aggregator, spare)
    return replace(found, memory=_memory(keep, found.start(), scenario)) if scenario.life.period else found


def _memory(keep: Keeping, start: State, scenario: Scenario) -> State:
    """What is remembered of a user at first; {} where nothing ever is."""
    own, asks = {name: value for name, value in start.items() if name.startswith("private/")}, scenario.life.train == "drift"
    if not own or (keep.begin is unchanged and not asks):
        return {}
    sizes = {PERIOD: 1, SEEN: 1} | ({SAT_OUT: 1, NOTES: drift.of(scenario).memory} if asks else {})
    device = next(iter(own.values())).device
    kept = {name: value.to(device) for name, value in keep.memory(own, scenario.life.periods).items()}
    return kept | {name: torch.zeros(size, device=device) for name, size in sizes.items() if size}


def twinned(layouts: tuple[Layout, ...], scheme: schemes.Scheme) -> tuple[Layout, ...]:
    """The layouts, and copies of the shared one wherever a scheme has such."""
    others = [x for x in layouts if x.block not in scheme.twins]
    return (*others, *(replace(others[0], block=block) for block in scheme.twins))


def twin(key: str) -> str:
    """The tensor of the shared adapter that a copy's tensor is a copy of."""
    return f"shared/{key.partition('/')[2]}"
