"""Adapters sit where PEFT would put them, start as the base model, and say what their papers say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from client.adapters import KINDS
from client.adapters.fisher import fitted
from client.adapters.layout import PREFIX, fresh, layer_of, layout, targets
from client.adapters.prompt import NAME as PROMPT
from client.adapters.types import add_times, times, weight_OI
from client.base import Base, decoder_layers
from client.data.types import Encoded
from client.tower import Tower
from configs.errors import InputError
from configs.scenario import Adapter, Engine

Texts = Callable[..., list[Encoded]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [0, 1])
def test_every_kind_but_a_prompt_starts_as_the_base_model(any_base: Base, texts: Texts, kind: str, layers: int) -> None:
    block = layout("private", Adapter(kind=kind, layers=layers), any_base, 0)  # type: ignore[arg-type]
    tower = Tower(any_base, (block,), Engine())
    bare = tower(texts(0, 3), []).hidden_MD
    found = tower(texts(0, 3), [(block, {n: v[None] for n, v in block.start.items()})]).hidden_MD
    tower.close()
    torch.testing.assert_close(found, bare, atol=1e-6, rtol=0)


def test_a_lora_has_the_names_and_shapes_that_peft_gives_it(any_base: Base) -> None:
    block = layout("shared", Adapter(rank=3, layers=0), any_base, 0)
    config = LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=any_base.name == "tiny-gpt2")
    model: Any = get_peft_model(any_base.model, config)
    theirs = {n.replace(".default", ""): v.shape for n, v in model.named_parameters() if "lora_" in n}
    assert {n: v.shape for n, v in block.start.items()} == theirs


def test_targets_are_suffixes_in_the_top_layers_and_never_the_head(any_base: Base) -> None:
    everything = targets(any_base, Adapter(layers=0), "shared")
    assert {layer_of(any_base, name) for name in everything} == {0, 1, 2}
    assert not any("lm_head" in name for name in everything)
    top = targets(any_base, Adapter(layers=1), "shared")
    assert top == tuple(name for name in everything if layer_of(any_base, name) == 2)
    last = top[-1].rpartition(".")[2]
    assert all(name.endswith(f".{last}") for name in targets(any_base, Adapter(layers=0, targets=(last,)), "shared"))
    assert targets(any_base, Adapter(layers=99), "shared") == everything


def test_a_target_that_no_module_has_is_refused_with_the_nearest_name(base: Base) -> None:
    with pytest.raises(InputError, match=r"shared\.targets: 'q_prj' .*did you mean 'q_proj'"):
        layout("shared", Adapter(targets=("q_prj",)), base, 0)


def test_a_start_is_keyed_by_seed_block_and_module_alone(base: Base) -> None:
    one, wide = (layout("shared", Adapter(layers=n), base, 0) for n in (1, 3))
    assert all(torch.equal(v, wide.start[n]) for n, v in one.start.items())
    for other in (layout("private", Adapter(layers=1), base, 0), layout("shared", Adapter(layers=1), base, 1)):
        assert not any(torch.equal(v, other.start[n]) for n, v in one.start.items() if ".lora_A." in n)
    torch.manual_seed(99)
    again = layout("shared", Adapter(layers=1), base, 0)
    assert all(torch.equal(v, again.start[n]) for n, v in one.start.items())


def test_modules_of_equal_shape_start_apart(base: Base) -> None:
    start = layout("shared", Adapter(layers=0, targets=("q_proj", "k_proj")), base, 0).start
    ups = [v for n, v in start.items() if ".lora_A." in n]
    assert all(v.shape == ups[0].shape for v in ups)
    assert len({tuple(v.flatten().tolist()) for v in ups}) == len(ups) == 6


def test_fresh_is_a_copy(base: Base) -> None:
    block = layout("shared", Adapter(), base, 0)
    for value in fresh(block).values():
        value.fill_(7.0)
    assert not any(bool((v == 7.0).all()) for v in block.start.values())


@pytest.mark.parametrize("users", [1, 3])
def test_batched_products_equal_a_loop_over_users(users: int) -> None:
    torch.manual_seed(0)
    x, y, w = torch.randn(6, 5, 4), torch.randn(6, 5, 3), torch.randn(users, 3, 4)
    own = w.repeat_interleave(6 // users, 0)
    want = torch.stack([x[i] @ own[i].T for i in range(6)])
    torch.testing.assert_close(times(x, w), want)
    torch.testing.assert_close(add_times(y, x, w), y + want)


@pytest.mark.parametrize("factors", ["svd", "random"])
def test_factors_of_a_core_are_orthonormal_and_the_svds_span_the_weight(any_base: Base, factors: str) -> None:
    block = layout("private", Adapter(kind="core", rank=5, layers=1, factors=factors), any_base, 0)  # type: ignore[arg-type]
    for module, found in block.constants.items():
        u, v = found["U"], found["V"]
        torch.testing.assert_close(u.T @ u, torch.eye(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(v @ v.T, torch.eye(5), atol=1e-5, rtol=0)
        if factors == "svd":
            core = u.T @ weight_OI(any_base.model.get_submodule(module)) @ v.T
            singular = torch.linalg.svdvals(weight_OI(any_base.model.get_submodule(module)))[:5]
            torch.testing.assert_close(core.abs(), torch.diag(singular), atol=1e-4, rtol=1e-4)
        assert block.start[f"{PREFIX}{module}.core.weight"].numel() == 25


def test_a_core_larger_than_its_module_takes_what_there_is(base: Base) -> None:
    block = layout("private", Adapter(kind="core", rank=40, layers=1, targets=("k_proj",)), base, 0)
    assert [v.shape for v in block.start.values()] == [(16, 16)]


def test_a_soft_prompt_starts_from_rows_of_the_vocabulary(base: Base) -> None:
    start = layout("private", Adapter(kind="prompt", tokens=5), base, 0).start[PROMPT]
    table = base.model.get_input_embeddings().weight
    assert all(bool((table == row).all(1).any()) for row in start)


@pytest.mark.parametrize("task", ["answer", "choice"])
def test_fisher_factors_keep_the_leading_directions_and_need_public_texts(base: Base, texts: Texts, task: str) -> None:
    labels = (4, 9) if task == "choice" else ()
    config = Adapter(kind="core", rank=3, layers=1, targets=("down_proj",), factors="fisher")
    block = layout("private", config, base, 0)
    tower = Tower(base, (block,), Engine())
    try:
        with pytest.raises(InputError, match="public texts"):
            fitted(block, tower, [], labels)
        once, again = (fitted(block, tower, texts(1, 30, task=task), labels) for _ in range(2))
    finally:
        tower.close()
    for module, found in once.constants.items():
        assert found["U"].shape == (32, 3)
        assert found["V"].shape == (3, 48)
        assert all(torch.equal(found[n], again.constants[module][n]) for n in found)
        for rows in (found["U"].T, found["V"]):
            cross = rows @ rows.T
            torch.testing.assert_close(cross, torch.diag(cross.diagonal()), atol=1e-4 * float(cross.max()), rtol=0)


def test_the_stack_of_layers_is_found_and_its_lack_is_said(base: Base) -> None:
    assert decoder_layers(base.model) is base.model.model.layers
    base.model.config.num_hidden_layers = 17
    with pytest.raises(InputError, match="17 decoder layers"):
        decoder_layers(base.model)


@pytest.mark.parametrize("kind", ["lora", "core", "mixed", "ia3", "prompt"])
def test_what_an_adapter_starts_from_lies_where_the_model_lies(base: Base, kind: Any) -> None:
    base.model.to("meta")  # type: ignore[arg-type]
    made = layout("private", Adapter(kind=kind, factors="random"), base, 0)
    assert {value.device.type for value in made.start.values()} == {"meta"}
