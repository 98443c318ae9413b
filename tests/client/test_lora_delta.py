"""A delta beside a LoRA does to a model what the same change of its weights would, by every way in, and in stock PEFT."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from client.adapters.layout import Layout, layout
from client.adapters.lora import DELTA
from client.base import Base
from client.cache import ActivationCache
from client.data.types import Encoded
from client.dpsgd import Guard
from client.node import split
from client.peft_io import load_lora, save_user
from client.tower import Predicting, Tower, Way
from client.train import Learner, Trainer
from configs.scenario import Adapter, Engine, Local, Scenario
from strategies.aggregators import AGGREGATORS
from strategies.privacy.noise import keyed
from strategies.tree import State, stack

Texts = Callable[..., list[Encoded]]
LORA = Adapter(rank=3, alpha=5.0)
WAYS: list[tuple[Way, int, tuple[str, ...]]] = [
    ("ids", 0, ("all-linear",)), ("hidden", 2, ("all-linear",)), ("keys", 1, ("o_proj", "up_proj")), ("tail", 1, ("down_proj",)),
]  # fmt: skip


def block_of(base: Base, layers: int = 2, targets: tuple[str, ...] = ("all-linear",), mutable: bool = True) -> Layout:
    """The shared adapter on some top layers."""
    return layout("shared", replace(LORA, layers=layers, targets=targets), base, 0, mutable)


def loud(block: Layout, user: int) -> State:
    """A user's own factors, and the delta that all have; keyed by name, so that more tensors change no other."""
    found = {}
    for name, value in block.start.items():
        draw = torch.Generator().manual_seed(sum(name.encode()) + (0 if name.endswith(DELTA) else 1000 * (1 + user)))
        found[name] = value + 0.1 * torch.randn(value.shape, generator=draw)
    return found


def changed(base: Base, block: Layout, state: State) -> Base:
    """The same base with s delta added to its weights."""
    model: Any = copy.deepcopy(base.model)
    for name in block.modules:
        module, scale = model.get_submodule(name), block.config.alpha / block.config.rank
        delta_OI = scale * state[f"base_model.model.{name}.{DELTA}"]
        module.weight.data += delta_OI.T if isinstance(module, Conv1D) else delta_OI
    return Base(model, base.tokenizer, base.name)


def plain(state: State) -> State:
    """The two factors alone."""
    return {n: v for n, v in state.items() if not n.endswith(DELTA)}


def seen(base: Base, block: Layout, states: list[State], rows: list[Encoded], way: Way | None = None) -> Predicting:
    """One pass of users who have the delta in common, the second time out of the cache."""
    tower = Tower(base, (block,), Engine())
    try:
        tower.way, tower.cache = way or tower.way, ActivationCache(2**22)
        tower(rows, [])
        each = stack(states)
        return tower(rows, [(block, {n: v[:1] if n.endswith(DELTA) else v for n, v in each.items()})])
    finally:
        tower.close()


@pytest.mark.parametrize("way", WAYS, ids=[way for way, *_ in WAYS])
def test_by_every_way_in_it_is_a_change_of_the_weights(base: Base, texts: Texts, way: tuple[Way, int, tuple[str, ...]]) -> None:
    named, layers, targets = way
    block, bare = (block_of(base, layers, targets, mutable) for mutable in (True, False))
    tower = Tower(base, (block,), Engine())
    tower.close()
    assert tower.way == named
    states, rows = [loud(block, u) for u in range(2)], [*texts(0, 2), *texts(1, 2)]
    found = seen(base, block, states, rows).hidden_MD
    want = seen(changed(base, block, states[0]), bare, [plain(s) for s in states], rows, "ids").hidden_MD
    torch.testing.assert_close(found, want, atol=3e-5, rtol=1e-4)
    without = seen(base, bare, [plain(s) for s in states], rows).hidden_MD
    assert float((found - without).abs().max()) > 0.1


def test_on_every_architecture_whichever_way_round_it_keeps_its_weights(any_base: Base, texts: Texts) -> None:
    block, bare = block_of(any_base), block_of(any_base, mutable=False)
    states, rows = [loud(block, u) for u in range(2)], [*texts(0, 2), *texts(1, 2)]
    want = seen(changed(any_base, block, states[0]), bare, [plain(s) for s in states], rows).hidden_MD
    torch.testing.assert_close(seen(any_base, block, states, rows).hidden_MD, want, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("guard", [None, Guard(0.05, keyed), Guard(1e9, keyed)], ids=["plain", "clipped", "loose"])
def test_training_beside_it_is_training_on_the_changed_base(base: Base, texts: Texts, guard: Guard | None) -> None:
    block, bare, local = block_of(base), block_of(base, mutable=False), Local(optimizer="sgd", lr=0.2, batch=4, epochs=2)
    common = {f"shared/{n}": v for n, v in loud(block, 0).items() if n.endswith(DELTA)}
    ends = []
    for one, on in ((block, base), (bare, changed(base, block, loud(block, 0)))):
        tower = Tower(on, (one,), Engine())
        own = [{f"shared/{n}": v for n, v in plain(loud(block, u)).items()} for u in range(3)]
        learners = [
            Learner((common if one is block else {}) | s, texts(u, 1 + 2 * u), [], (0, 1, u, "x"), 0.3 if guard else 0.0)
            for u, s in enumerate(own)
        ]
        ends.append(Trainer(tower, (one,), Engine()).train(learners, lambda n: not n.endswith(DELTA), local, guard)[0])
        tower.close()
    for mine, theirs in zip(*ends, strict=True):
        assert mine.keys() == theirs.keys() and not any(n.endswith(DELTA) for n in mine)
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------ who has one
@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_shared_lora_has_a_delta_exactly_where_the_aggregator_carries_one(base: Base, name: str) -> None:
    found = split(Scenario(aggregator=name, scheme="dual", shared=LORA, private=replace(LORA, rank=2)), base)
    deltas = [key for key in found.start() if key.endswith(DELTA)]
    assert bool(deltas) == ("lora_delta" in found.aggregator.carried)
    assert len(deltas) in (0, len(found.layouts[0].modules))
    for key in deltas:
        assert key.startswith("shared/") and found.travels(key) and not found.start()[key].any()
        assert not any(found.released(key, number) or found.moves(key, p, number) for p in found.scheme.phases for number in (1, 2))
        assert key.removeprefix("shared/") in found.shared_start()


# ------------------------------------------------------------------ stock peft
@pytest.mark.parametrize("rank", [0, 2, 32])
def test_an_export_says_in_stock_peft_what_the_engine_says_and_has_no_more_ranks_than_the_change(
    any_base: Base, tmp_path: Path, rank: int
) -> None:
    block, ids = block_of(any_base), torch.arange(4, 16)
    state = plain(loud(block, 0))
    for name, value in block.start.items():
        if name.endswith(DELTA):
            draw = torch.Generator().manual_seed(sum(name.encode()))
            out, into = value.shape
            state[name] = 0.05 * torch.randn(out, rank, generator=draw) @ torch.randn(rank, into, generator=draw)
    save_user(any_base, (block,), {f"shared/{n}": v for n, v in state.items()}, tmp_path / "out")
    any_base.model.save_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out").eval()
    with torch.no_grad():
        theirs = model(input_ids=ids[None]).logits[0, :-1]
    ours = any_base.model.lm_head(seen(any_base, block, [state], [Encoded(ids, 1, -1, 0)]).hidden_MD)
    torch.testing.assert_close(theirs, ours, atol=5e-5, rtol=1e-4)
    ranks = {len(v) for n, v in model.state_dict().items() if ".lora_A." in n}
    assert ranks == {3 + rank} or rank == 32


def test_what_peft_saved_starts_a_run_whose_aggregator_changes_the_base(base: Base, tmp_path: Path) -> None:
    block, bare = block_of(base), block_of(base, mutable=False)
    state = {f"shared/{n}": v for n, v in plain(loud(block, 0)).items()}
    save_user(base, (bare,), state, tmp_path / "out")
    found = load_lora(tmp_path / "out", block)
    assert {f"shared/{n}" for n in found} == state.keys() and all(torch.equal(v, state[f"shared/{n}"]) for n, v in found.items())
