"""What differential privacy costs: the engine's DP-SGD against its own step without, at equal tokens per pass, and against Opacus.

On the device that a scenario's ``engine.device: auto`` finds.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from client.base import resolve_device
from client.dpsgd import Guard
from configs.scenario import Engine
from simulations.bench import world
from simulations.bench.measure import Figure, agree, alternate, one_thread
from simulations.bench.ours import Fused
from simulations.bench.world import Size, local, random_ids, random_model, starts
from strategies.privacy.noise import keyed

COMPUTE = replace(world.COMPUTE, users=8, examples=8, tokens=32)
SMALL = replace(world.OVERHEAD, users=16, examples=8, tokens=16)
CLIP, NOISE = 1.0, 1.0  # bound of one example's gradient, and the noise's standard deviation over it
STEPS = 2  # of each user in a visit, so that loading is not all there is
LOOSE = Guard(1e9, keyed)
SAME = 1e-3  # of the distance moved


@one_thread()
def steps(name: str, size: Size, repetitions: int) -> dict[str, Figure]:
    """Seconds per example of a step with and without, by kind of adapter; LoRA's have the plain name."""
    kinds = {name if kind == "lora" else f"{name}_{kind}": replace(size, kind=kind) for kind in world.KINDS}
    return {key: _step(chosen, repetitions) for key, chosen in kinds.items()}


def _on(device: torch.device, model: Any) -> Any:
    """The model, on a device: transformers types ``to`` as if it took a model."""
    return model.to(device)


def _step(size: Size, repetitions: int) -> Figure:
    device, ids = resolve_device(Engine().device), random_ids(size)
    fused = Fused(_on(device, random_model(size)), size)
    begin, settings = starts(size, fused.layouts), local(size, steps=STEPS)
    try:
        same_sums(fused, size)
        seconds = alternate(
            {
                "private": lambda: fused.visit(begin, ids, settings, Guard(CLIP, keyed), NOISE),
                "plain": lambda: fused.visit(begin, ids, settings),
            },
            repetitions,
            clock(device),
        )
    finally:
        fused.close()
    examples = size.users * size.examples * STEPS
    return Figure(seconds["private"] / examples, seconds["plain"] / examples, unit(device))


@one_thread()
def opacus(name: str, size: Size, repetitions: int) -> dict[str, Figure]:
    """Seconds per example of DP-SGD on LoRA: the engine's, and Opacus's by hooks and by ghost clipping, which take the same step."""
    from simulations.bench.dp_theirs import Opacus  # it takes seconds to load, and nothing else here needs it

    device, ids = resolve_device(Engine().device), random_ids(size)
    model = _on(device, random_model(size))
    theirs = {side: Opacus(model, size, CLIP, side == "ghost") for side in ("hooks", "ghost")}
    fused = Fused(model, size)
    begin, settings, sgd, guard = starts(size, fused.layouts), local(size, steps=STEPS), local(size, "sgd"), Guard(CLIP, keyed)
    try:
        reached = fused.visit(begin, ids, sgd, guard)
        for side in theirs.values():
            agree(reached, side.visit(begin, ids, sgd, 0.0), begin, SAME)
        sides: dict[str, Callable[[], object]] = {"ours": lambda: fused.visit(begin, ids, settings, guard, NOISE)}
        sides |= {key: lambda x=side: x.visit(begin, ids, settings, NOISE) for key, side in theirs.items()}
        seconds = alternate(sides, repetitions, clock(device))
    finally:
        fused.close()
    each = {key: found / (size.users * size.examples * STEPS) for key, found in seconds.items()}
    return {name.replace("hooks", key): Figure(each["ours"], each[key], unit(device)) for key in theirs}


def same_sums(fused: Fused, size: Size) -> None:
    """Where no bound binds and no noise is added, both make the same step of plain gradient descent."""
    ids, settings, begin = random_ids(size), local(size, "sgd"), starts(size, fused.layouts)
    agree(fused.visit(begin, ids, settings, LOOSE), fused.visit(begin, ids, settings), begin, SAME)


def clock(device: torch.device) -> Callable[[], float]:
    """CPU seconds of this process; on another device wall seconds until it has done what was asked of it."""
    if device.type == "cpu":
        return time.process_time

    def now() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return now


def unit(device: torch.device) -> str:
    """What is counted."""
    return "CPU s per example" if device.type == "cpu" else f"wall s per example, {device.type}"
