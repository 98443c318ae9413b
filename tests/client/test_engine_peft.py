"""Fused training equals plain PEFT, one user after the other, with torch's own optimizers and clipping."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from client.adapters.layout import Layout, layout
from client.adapters.mixed import GAIN
from client.base import Base
from client.data.types import Encoded
from client.tower import Tower
from client.train import Learner, Trainer
from configs.scenario import Adapter, Engine, Local
from strategies import schemes
from strategies.tree import State, generator

Texts = Callable[..., list[Encoded]]
Moves = Callable[[str], bool]
Forward = Callable[[Tensor], Tensor]  # ids [1, T] -> logits [1, T, V]
LR = {"sgd": 0.2, "adamw": 1e-2}
COUNTS = (1, 2, 3)  # ragged: half a step, one, and one and a half, of two
LORA = Adapter(rank=3, alpha=5.0, layers=2)
PREFIX = "base_model.model."


def starts(blocks: Sequence[Layout], user: int) -> State:
    """A user's tensors away from the start, shared ones the same for all, so that every factor has a gradient."""
    found = {}
    for block in blocks:
        draw = torch.Generator().manual_seed(0 if block.block == "shared" else 1000 + user)
        found |= {f"{block.block}/{n}": v + 0.1 * torch.randn(v.shape, generator=draw) for n, v in block.start.items()}
    return found


def batches(examples: Sequence[Encoded], local: Local, key: tuple[object, ...]) -> Iterator[list[Encoded]]:
    """The order that a learner's key stands for."""
    for epoch in range(local.epochs):
        order = torch.randperm(len(examples), generator=generator(*key, epoch, "order")).tolist()
        for first in range(0, len(examples), local.batch):
            yield [examples[i] for i in order[first : first + local.batch]]


def step_all(forward: Forward, leaves: list[torch.nn.Parameter], steps: Iterator[list[Encoded]], local: Local) -> None:
    """The plain loop: a row at a time without padding, mean over its tokens, mean over the batch, clip, step."""
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    decay = {"weight_decay": 0.0} if local.optimizer == "adamw" else {}
    optimizer = kinds[local.optimizer](leaves, lr=local.lr, **decay)
    for batch in steps:
        optimizer.zero_grad()
        losses = [F.cross_entropy(forward(e.ids[None])[0, e.start - 1 : -1], e.ids[e.start :]) for e in batch]
        torch.stack(losses).mean().backward()
        if local.max_norm:
            torch.nn.utils.clip_grad_norm_(leaves, local.max_norm)
        optimizer.step()


def peft_lora(base: Base, blocks: Sequence[Layout], state: State, moves: Moves) -> tuple[Forward, dict[str, torch.nn.Parameter]]:
    """A PEFT model with one or two LoRA adapters, both active, and its moving parameters by our names."""
    model: Any = copy.deepcopy(base.model)
    for block in blocks:
        config = LoraConfig(
            r=block.config.rank,
            lora_alpha=block.config.alpha,  # type: ignore[arg-type]
            target_modules=list(block.modules),
            fan_in_fan_out=base.name == "tiny-gpt2",
        )
        model = get_peft_model(model, config, block.block) if block is blocks[0] else model
        if block is not blocks[0]:
            model.add_adapter(block.block, config)
    model.base_model.set_adapter([block.block for block in blocks])
    model.eval()
    found = {}
    for name, value in model.named_parameters():
        value.requires_grad_(False)
        for block in blocks:
            key = f"{block.block}/{name.replace(f'.{block.block}.weight', '.weight')}"
            if "lora_" in name and key in state:
                value.data.copy_(state[key])
                found[key] = value.requires_grad_(moves(key))
    assert found.keys() == state.keys()
    return lambda ids: model(input_ids=ids).logits, {k: v for k, v in found.items() if moves(k)}


def fused(base: Base, blocks: Sequence[Layout], texts: Texts, local: Local, moves: Moves, tokens: int = 60) -> list[State]:
    """What the engine makes of the same users, side by side in several passes."""
    engine = Engine(tokens_per_pass=tokens)
    tower = Tower(base, blocks, engine)
    try:
        learners = [Learner(starts(blocks, u), texts(u, n), [], (0, 1, u, "x")) for u, n in enumerate(COUNTS)]
        return Trainer(tower, tuple(blocks), engine).train(learners, moves, local)[0]
    finally:
        tower.close()


def compare(ours: Sequence[State], theirs: Sequence[State], begun: Sequence[State], local: Local) -> None:
    """SGD agrees to 1e-6. Adam divides a slope by its size + 1e-8, so that rounding decides where a slope is next to nothing.

    There the difference may be a step; nearly all numbers agree to 1e-5 all the same.
    """
    flat = [torch.cat([(x[n] - s[n]).flatten() for x, s in zip(side, begun, strict=True) for n in ours[0]]) for side in (ours, theirs)]
    apart = (flat[0] - flat[1]).abs()
    assert float(flat[1].abs().max()) > 1e-2, "nothing moved: the comparison would be empty"
    if local.optimizer == "sgd":
        assert float(apart.max()) <= 1e-6
    else:
        assert float(apart.max()) <= 0.05 * local.lr
        assert float((apart > 1e-5).float().mean()) < 3e-3


def check(base: Base, blocks: Sequence[Layout], texts: Texts, moves: Moves, optimizer: str, build: Any = peft_lora) -> None:
    """Train both ways and compare."""
    local = Local(optimizer=optimizer, lr=LR[optimizer], batch=2, max_norm=0.5)  # type: ignore[arg-type]
    ours = fused(base, blocks, texts, local, moves)
    theirs, begun = [], []
    for user, count in enumerate(COUNTS):
        state = starts(blocks, user)
        forward, leaves = build(base, blocks, state, moves)
        step_all(forward, list(leaves.values()), batches(texts(user, count), local, (0, 1, user, "x")), local)
        theirs.append({n: v.detach().clone() for n, v in leaves.items()})
        begun.append(state)
        assert ours[user].keys() == leaves.keys()
    compare(ours, theirs, begun, local)


PHASES: dict[str, Moves] = {
    "shared moves, gradient through private": lambda key: key.startswith("shared/"),
    "private moves, gradient through shared": lambda key: key.startswith("private/"),
    "both move": lambda _: True,
    "only A moves": lambda key: ".lora_A." in key,
    "only B moves": lambda key: ".lora_B." in key,
}


@pytest.mark.parametrize("phase", PHASES)
def test_two_loras_train_as_in_peft(base: Base, texts: Texts, phase: str) -> None:
    blocks = (layout("shared", LORA, base, 0), layout("private", replace(LORA, rank=2, layers=0), base, 0))
    check(base, blocks, texts, PHASES[phase], "sgd")


def test_and_so_they_do_on_every_architecture(any_base: Base, texts: Texts) -> None:
    blocks = (layout("shared", LORA, any_base, 0), layout("private", replace(LORA, rank=2, layers=0), any_base, 0))
    check(any_base, blocks, texts, lambda _: True, "sgd")


@pytest.mark.parametrize("phase", list(PHASES)[1:3])
def test_two_loras_train_as_in_peft_with_adamw(base: Base, texts: Texts, phase: str) -> None:
    blocks = (layout("shared", LORA, base, 0), layout("private", replace(LORA, rank=2), base, 0))
    check(base, blocks, texts, PHASES[phase], "adamw")


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_every_phase_of_every_scheme_trains_as_in_peft(base: Base, texts: Texts, scheme: str) -> None:
    built = schemes.build(scheme, {})
    blocks = tuple(layout(name, LORA, base, 0) for name in built.blocks)
    for phase in built.phases:

        def moves(key: str, allowed: tuple[str, ...] = phase.moves) -> bool:
            block, _, name = key.partition("/")
            return built.owner(block, name) in allowed

        check(base, blocks, texts, moves, "sgd")


def test_one_lora_on_a_single_layer_trains_as_in_peft(any_base: Base, texts: Texts) -> None:
    check(any_base, (layout("shared", replace(LORA, layers=1), any_base, 0),), texts, lambda _: True, "sgd")


# ------------------------------------------------------------------ other kinds
def merged(base: Base, shared: Layout, state: State) -> Any:
    """A copy of the base with one user's shared LoRA added into its weights."""
    forward, _ = peft_lora(base, (shared,), {k: v for k, v in state.items() if k.startswith("shared/")}, lambda _: False)
    model: Any = forward.__closure__[0].cell_contents  # type: ignore[attr-defined,index]
    return model.merge_and_unload()


def peft_ia3(base: Base, blocks: Sequence[Layout], state: State, moves: Moves) -> tuple[Forward, dict[str, torch.nn.Parameter]]:
    """PEFT's (IA)^3 over a merged LoRA."""
    del moves
    config = IA3Config(target_modules=list(blocks[1].modules), feedforward_modules=[], fan_in_fan_out=base.name == "tiny-gpt2")
    model: Any = get_peft_model(merged(base, blocks[0], state), config)
    found = {f"private/{n.removesuffix('.default')}": v for n, v in model.named_parameters() if "ia3_l" in n}
    for name, value in found.items():
        value.data.copy_(state[name])
    model.eval()
    return lambda ids: model(input_ids=ids).logits, found


def peft_prompt(base: Base, blocks: Sequence[Layout], state: State, moves: Moves) -> tuple[Forward, dict[str, torch.nn.Parameter]]:
    """PEFT's prompt tuning over a merged LoRA."""
    del moves
    tokens = blocks[1].config.tokens
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    model: Any = get_peft_model(merged(base, blocks[0], state), config)
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data.copy_(state["private/prompt_embeddings"])
    model.eval()
    return lambda ids: model(input_ids=ids).logits[:, tokens:], {"private/prompt_embeddings": weight}


def explicit(base: Base, blocks: Sequence[Layout], state: State, moves: Moves) -> tuple[Forward, dict[str, torch.nn.Parameter]]:
    """Every kind written out for one user, from its paper's equation, with autograd."""
    leaves = {n: torch.nn.Parameter(v.clone(), requires_grad=moves(n)) for n, v in state.items()}
    model = base.model

    def changed(name: str, block: Layout, x: Tensor, y: Tensor) -> Tensor:
        def of(suffix: str) -> Tensor:
            return leaves[f"{block.block}/{PREFIX}{name}.{suffix}"]

        scale = block.config.alpha / block.config.rank
        if block.config.kind == "lora":
            return y + scale * x @ of("lora_A.weight").T @ of("lora_B.weight").T
        if block.config.kind == "mixed":
            u, v = block.constants[name]["U"], block.constants[name]["V"]
            return y + scale * x @ (u @ of("core.weight") @ (torch.eye(len(v)) + GAIN * of("mix.weight")) @ v).T
        if block.config.kind == "core":
            u, v = block.constants[name]["U"], block.constants[name]["V"]
            return y + scale * x @ (u @ of("core.weight") @ v).T
        return y * of("ia3_l")[:, 0]

    @contextmanager
    def hooked() -> Iterator[None]:
        def hook(name: str, block: Layout) -> Any:
            return lambda _m, inputs, y: changed(name, block, inputs[0], y)

        handles = [model.get_submodule(n).register_forward_hook(hook(n, b)) for b in blocks for n in b.modules]
        yield
        for handle in handles:
            handle.remove()

    def forward(ids: Tensor) -> Tensor:
        soft = leaves.get("private/prompt_embeddings")
        with hooked():
            if soft is None:
                return model(input_ids=ids).logits
            tokens = model.get_input_embeddings()(ids)
            return model(inputs_embeds=torch.cat([soft[None], tokens], 1)).logits[:, len(soft) :]

    return forward, {n: v for n, v in leaves.items() if moves(n)}


OTHERS = {
    "core": Adapter(kind="core", rank=3, alpha=5.0, layers=2),
    "mixed": Adapter(kind="mixed", rank=3, alpha=5.0, layers=2),
    "random core": Adapter(kind="core", rank=3, alpha=5.0, layers=1, factors="random"),
    "ia3": Adapter(kind="ia3", layers=2),
    "prompt": Adapter(kind="prompt", tokens=3),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("phase", list(PHASES)[:2])
def test_every_private_kind_beside_a_shared_lora_trains_as_its_equation_says(base: Base, texts: Texts, kind: str, phase: str) -> None:
    blocks = (layout("shared", LORA, base, 0), layout("private", OTHERS[kind], base, 0))
    check(base, blocks, texts, PHASES[phase], "sgd", explicit)


@pytest.mark.parametrize("kind", OTHERS)
def test_so_it_does_on_every_architecture(any_base: Base, texts: Texts, kind: str) -> None:
    blocks = (layout("shared", LORA, any_base, 0), layout("private", OTHERS[kind], any_base, 0))
    check(any_base, blocks, texts, lambda _: True, "sgd", explicit)


@pytest.mark.parametrize(("kind", "build"), [("ia3", peft_ia3), ("prompt", peft_prompt)])
def test_ia3_and_soft_prompts_over_a_shared_lora_train_as_in_peft(any_base: Base, texts: Texts, kind: str, build: Any) -> None:
    blocks = (layout("shared", LORA, any_base, 0), layout("private", OTHERS[kind], any_base, 0))
    check(any_base, blocks, texts, lambda key: key.startswith("private/"), "sgd", build)


@pytest.mark.parametrize(("kind", "build"), [("ia3", peft_ia3), ("prompt", peft_prompt)])
def test_and_with_adamw(base: Base, texts: Texts, kind: str, build: Any) -> None:
    blocks = (layout("shared", LORA, base, 0), layout("private", OTHERS[kind], base, 0))
    check(base, blocks, texts, lambda key: key.startswith("private/"), "adamw", build)


def test_the_reference_itself_notices_another_order_of_examples(base: Base, texts: Texts) -> None:
    blocks = (layout("shared", LORA, base, 0),)
    local = Local(optimizer="sgd", lr=0.1, batch=2, epochs=1)
    ends = []
    for key in ("x", "y"):
        forward, leaves = peft_lora(base, blocks, starts(blocks, 0), lambda _: True)
        step_all(forward, list(leaves.values()), batches(texts(0, 6), local, (0, 1, 0, key)), local)
        ends.append({n: v.detach().clone() for n, v in leaves.items()})
    for first, second in pairwise(ends):
        assert max(float((first[n] - second[n]).abs().max()) for n in first) > 1e-4
