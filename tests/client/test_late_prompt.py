"""A late prompt is a soft prompt of the model that its top layers are."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.adapters.late_prompt import NAME, SCALE
from client.adapters.layout import Layout, layout
from client.adapters.prompt import NAME as SOFT
from client.base import Base
from client.data.types import Encoded
from client.peft_io import save_user
from client.tower import Blocks, Tower, Way
from client.train import Learner, Trainer
from configs.errors import InputError
from configs.scenario import Adapter, Engine, Local
from strategies.tree import State, stack
from tests.conftest import LAYERS, gpt2

Texts = Callable[..., list[Encoded]]
COUNT, USERS = 3, 2
PLAIN = Adapter(rank=3, layers=1, targets=("down_proj",))


def late(base: Base, layers: int = 1) -> Layout:
    """A user's own late prompt."""
    return layout("private", Adapter(kind="late_prompt", tokens=COUNT, layers=layers), base, 0)


def loud(block: Layout) -> State:
    """Some users' states away from the start, [K, ...]."""
    draw = torch.Generator().manual_seed(5)
    return stack([{n: v + 0.3 * torch.randn(v.shape, generator=draw) for n, v in block.start.items()} for _ in range(USERS)])


def said(base: Base, blocks: Blocks, rows: list[Encoded], way: Way | None = None, engine: Engine = Engine()) -> Tensor:  # noqa: B008
    """One pass, by the way that the tower finds or by another."""
    tower = Tower(base, [x for x, _ in blocks], engine)
    try:
        tower.way = way or tower.way
        tower(rows, [])  # the second time everything is in the cache
        return tower(rows, blocks).hidden_MD
    finally:
        tower.close()


def above(base: Base, first: int) -> Base:
    """The model that the layers from ``first`` on are."""
    model = copy.deepcopy(base.model)
    stack_ = model.base_model
    name = "layers" if hasattr(stack_, "layers") else "h"
    setattr(stack_, name, nn.ModuleList(getattr(stack_, name)[first:]))
    model.config.num_hidden_layers = LAYERS - first
    for index, layer in enumerate(getattr(stack_, name)):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index  # type: ignore[assignment]
    if hasattr(stack_, "wpe"):  # positions are in the stream already
        stack_.wpe.weight.zero_()
    return Base(model, None, "above")


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_it_is_what_the_layers_above_make_of_vectors_before_their_stream(any_base: Base, texts: Texts, layers: int) -> None:
    block, rows = late(any_base, layers), [replace(e, start=1) for e in texts(0, 2 * USERS, length=9)]
    state, first = loud(block), LAYERS - layers if layers else 0
    stream = any_base.model(input_ids=torch.stack([e.ids for e in rows]), output_hidden_states=True).hidden_states[first]
    before = (state[NAME] * block.constants[NAME][SCALE]).repeat_interleave(2, 0)
    both = torch.cat([before, stream], 1)
    expected = above(any_base, first).model.base_model(inputs_embeds=both, use_cache=False).last_hidden_state[:, COUNT:-1]
    found = said(any_base, [(block, state)], rows)
    torch.testing.assert_close(found, expected.flatten(0, 1), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found, said(any_base, [], rows), atol=1e-2)


def test_below_all_layers_it_is_a_soft_prompt(base: Base, texts: Texts) -> None:
    block, soft = late(base, 0), layout("private", Adapter(kind="prompt", tokens=COUNT), base, 0)
    state = loud(block)
    same = {SOFT: state[NAME] * block.constants[NAME][SCALE]}
    torch.testing.assert_close(said(base, [(block, state)], texts(0, 4)), said(base, [(soft, same)], texts(0, 4)))


@pytest.mark.parametrize(("layers", "config", "way"), [(1, PLAIN, "keys"), (1, replace(PLAIN, targets=("v_proj",)), "hidden"),
                                                       (2, PLAIN, "hidden"), (1, replace(PLAIN, layers=2), "hidden"),
                                                       (2, replace(PLAIN, layers=0), "ids"), (0, PLAIN, "ids")])  # fmt: skip
@pytest.mark.parametrize("task", ["answer", "choice", "text"])
def test_every_way_in_says_the_same_and_has_the_same_gradient(base: Base, texts: Texts, layers: int, config: Adapter, way: str,
                                                              task: str) -> None:  # fmt: skip
    own, shared = late(base, layers), layout("shared", config, base, 0)
    rows = texts(0, 3, task=task) + texts(1, 3, task=task)

    def both(by: Way | None) -> list[Tensor]:
        states = [{n: v.requires_grad_() for n, v in loud(x).items()} for x in (shared, own)]
        found = said(base, list(zip((shared, own), states, strict=True)), rows, by)
        draw = torch.Generator().manual_seed(1)
        slopes = torch.autograd.grad((found * torch.randn(found.shape, generator=draw)).sum(), [v for s in states for v in s.values()])
        assert all(float(s.abs().max()) > 1e-3 for s in slopes)
        return [found, *slopes]

    tower = Tower(base, (shared, own), Engine())
    tower.close()
    assert tower.way == way
    for a, b in zip(both(None), both("ids"), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_positions_that_are_looked_up_cannot_lie_before_the_first_so_that_keys_are_not_cached() -> None:
    base = gpt2()
    tower = Tower(base, (late(base),), Engine())
    tower.close()
    assert tower.way == "hidden"


def test_a_pass_without_it_is_the_base_model(base: Base, texts: Texts) -> None:
    block = late(base)
    tower = Tower(base, (block,), Engine())
    found = tower(texts(0, 3), []).hidden_MD
    tower.close()
    torch.testing.assert_close(found, said(base, [], texts(0, 3), "ids"), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [1, 2])
def test_its_start_is_what_the_layer_makes_of_tokens_in_units_of_its_size(any_base: Base, layers: int) -> None:
    block = late(any_base, layers)
    assert block.lowest == LAYERS - layers and block.modules == ()
    assert block.start[NAME].shape == (COUNT, any_base.model.config.hidden_size)
    torch.testing.assert_close(block.start[NAME].square().mean(), torch.tensor(1.0))
    again, other = late(any_base, layers), layout("private", block.config, any_base, 1)
    assert torch.equal(again.start[NAME], block.start[NAME]) and not torch.equal(other.start[NAME], block.start[NAME])


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_activations_that_are_computed_again_give_the_same_adapter(base: Base, texts: Texts, layers: int) -> None:
    def trained(engine: Engine) -> State:
        block = late(base, layers)
        tower = Tower(base, (block,), engine)
        try:
            learner = Learner({f"private/{n}": v for n, v in block.start.items()}, texts(0, 3), [], (0,))
            return Trainer(tower, (block,), engine).train([learner], lambda _: True, Local(optimizer="sgd", lr=0.5, epochs=2))[0][0]
        finally:
            tower.close()

    plain, again = trained(Engine()), trained(Engine(checkpointing=True))
    torch.testing.assert_close(plain, again)
    assert not torch.allclose(plain[f"private/{NAME}"], late(base, layers).start[NAME])


def test_export_refuses_what_peft_does_not_know(base: Base, tmp_path: Any) -> None:
    block = late(base)
    state = {f"private/{n}": v for n, v in block.start.items()}
    with pytest.raises(InputError, match="late_prompt is no adapter that PEFT knows"):
        save_user(base, (block,), state, tmp_path / "out")
    assert not list(tmp_path.iterdir())
