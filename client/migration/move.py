"""One state on its way: every tensor "block/name" of an old base's layouts becomes one of the new base's."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from client.adapters.core import M
from client.adapters.ia3 import L
from client.adapters.late_prompt import NAME as LATE
from client.adapters.layout import PREFIX, Layout
from client.adapters.lora import A, B
from client.adapters.mixed import GAIN, T
from client.adapters.prompt import NAME as SOFT
from client.split import BESIDE, Split
from configs.errors import InputError
from strategies.lora import product_norm
from strategies.migrators import through
from strategies.migrators.terms import PROMPT, Way, Ways
from strategies.tree import State

Frames = tuple[Tensor, Tensor] | None


@dataclass
class Loss:
    """How much of what adapters do to weights did not arrive: sums of squared norms over what was moved."""

    gone: float = 0.0  # |dW - dW'|^2, dW as it should be on the new base
    whole: float = 0.0  # |dW|^2

    def add(self, gone: float, whole: float) -> None:
        """Count one module."""
        self.gone, self.whole = self.gone + gone, self.whole + whole

    @property
    def share(self) -> float:
        """From 0 (all arrived) to 1."""
        return self.gone / self.whole if self.whole else 0.0


@dataclass(frozen=True)
class Mover:
    """The same scenario's adapters on two bases, and the ways from one to the other."""

    old: Split
    new: Split
    ways: Ways
    frames: dict[tuple[str, str], Frames] = field(default_factory=dict, repr=False)  # of cores, as they are asked for

    def move(self, state: State, loss: Loss | None = None) -> State:
        """What ``state`` is on the new base, under the new layout's names and shapes. What belongs to no module stays as it is."""
        pairs, loss = self._pairs(), loss or Loss()
        adapters = {f"{there.block}/{name}" for there, _ in pairs for name in there.start}
        moved = {k: v for k, v in state.items() if k not in adapters and k.partition("/")[0] not in BESIDE}
        for there, here in pairs:
            own = {k.partition("/")[2]: v for k, v in state.items() if k in adapters and k.partition("/")[0] == there.block}
            moved |= {f"{here.block}/{n}": v for n, v in self._block(own, there, here, loss).items()}
        return moved | self._controls(state)

    def plain(self) -> bool:
        """Whether every number stays as it is, to the bit."""
        cores = [(x, m) for _, x in self._pairs() if x.config.kind in ("core", "mixed") for m in x.modules]
        return all(w.plain for w in self.ways.values()) and all(self._frames(x, m) is None for x, m in cores if m in self.ways)

    def _pairs(self) -> list[tuple[Layout, Layout]]:
        return list(zip((*self.old.layouts, *self.old.spare), (*self.new.layouts, *self.new.spare), strict=True))

    def _block(self, own: State, there: Layout, here: Layout, loss: Loss) -> State:
        for name in own.keys() & {SOFT, LATE}:
            return {name: through.prompt(own[name], self.ways[PROMPT])}
        suffixes = sorted({suffix for module in there.modules for suffix in _of(own, module)})
        moved: State = {}
        for module in here.modules if suffixes else ():
            way = self.ways.get(module)
            parts = _of(own, way.source) if way else {}
            after = self._module(parts, way, here, module, loss) if way and parts else {}
            moved |= {f"{PREFIX}{module}.{s}": after.get(s, here.start[f"{PREFIX}{module}.{s}"]) for s in suffixes}
        taken = {self.ways[m].source for m in here.modules if m in self.ways}
        for module in there.modules:
            if module not in taken:
                _drop(_of(own, module), loss)
        return moved

    def _module(self, own: State, way: Way, here: Layout, module: str, loss: Loss) -> State:
        """The tensors of one module by their suffix."""
        kind = here.config.kind
        if kind == "lora":
            if A in own and B in own:
                loss.add(0.0, float(product_norm(own[B].double(), own[A].double())) ** 2)
            return through.lora(own, way)
        if kind == "ia3":
            if way.out is not None and not way.out.moves:
                raise InputError(
                    f"{here.block}.kind 'ia3' scales outputs one by one, which this migrator mixes; use --with carry or distill"
                )
            return {L: through.scaled(own[L], way)}
        xy = self._frames(here, module)
        found: State = {}
        if T in own:
            found[T] = through.mixing(own[T], xy, GAIN)
        if M in own:
            found[M] = (through.left if kind == "mixed" else through.core)(own[M], xy)
            old, new = self._constants(here, module)
            loss.add(*through.lost(own[M], through.core(own[M], xy), old, new, way))
        return found

    def _frames(self, here: Layout, module: str) -> Frames:
        key = (here.block, module)
        if key not in self.frames:
            self.frames[key] = through.frames(*self._constants(here, module), self.ways[module])
        return self.frames[key]

    def _constants(self, here: Layout, module: str) -> tuple[State, State]:
        there = next(old for old, new in self._pairs() if new is here)
        return there.constants[self.ways[module].source], here.constants[module]

    def _controls(self, state: State) -> State:
        """Control variates: they speak of gradients, which turn with the base, so that they begin anew unless nothing changes."""
        blocks = {key.partition("/")[0] for key in state} & set(BESIDE)
        if not blocks or self.plain():
            return {k: v for k, v in state.items() if k.partition("/")[0] in blocks}
        return {k: torch.zeros_like(v) for k, v in self.new.start().items() if k.partition("/")[0] in blocks}


def _of(own: State, module: str) -> State:
    prefix = f"{PREFIX}{module}."
    return {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}


def _drop(own: State, loss: Loss) -> None:
    """Count a module that the new base has no place for."""
    if A in own and B in own:
        size = float(product_norm(own[B].double(), own[A].double())) ** 2
        loss.add(size, size)


def names(split: Split, shared: State) -> State:
    """A shared state that travels, as "block/name"."""
    return {split.key(name): value for name, value in shared.items()}


def bare(split: Split, state: State) -> State:
    """Undo `names`."""
    return {split.name(key): value for key, value in state.items()}
