"""Other bases than the tiny Llama: drifted a little, of another depth, with everything in other places."""

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from client.base import Base
from simulations.migrate.drifts import shorten
from tests.conftest import LAYERS, VOCAB, _base, llama


def drifted(strength: float = 0.02) -> Base:
    """Every weight of the layers a little elsewhere."""
    base = llama()
    draw = torch.Generator().manual_seed(1)
    for value in (v for layer in base.layers for v in layer.parameters() if v.dim() > 1):
        value += strength * value.std() * torch.randn(value.shape, generator=draw)
    return base


def shorter() -> Base:
    """Without its middle layer."""
    base = llama()
    shorten(base, 1)
    return base


def doubled(layer: int) -> Base:
    """With one layer twice, the second time with half of what it adds, so that the two differ."""
    config = llama().model.config
    config.num_hidden_layers = LAYERS + 1
    base, plain = _base(LlamaForCausalLM, config, "tiny-deeper"), llama()
    for name in ("model.embed_tokens", "model.norm", "lm_head"):
        base.model.get_submodule(name).load_state_dict(plain.model.get_submodule(name).state_dict())
    for new, old in enumerate([*range(layer + 1), *range(layer, LAYERS)]):
        base.layers[new].load_state_dict(plain.layers[old].state_dict())
    return base


def moved(heads: bool = True, stream: bool = False) -> Base:
    """The same function with its heads and inner neurons in other places; with ``stream`` the residual stream's numbers, too."""
    base = llama()
    draw = torch.Generator().manual_seed(2)
    for layer in base.layers:
        attention, inside = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        if heads:
            _permute(attention.get_submodule("q_proj"), 0, _parts([2, 3, 0, 1], 8))
            _permute(attention.get_submodule("o_proj"), 1, _parts([2, 3, 0, 1], 8))
            for name in ("k_proj", "v_proj"):
                _permute(getattr(attention, name), 0, _parts([1, 0], 8))
            inner = torch.randperm(48, generator=draw)
            for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
                _permute(getattr(inside, name), axis, inner)
    if stream:
        order = torch.randperm(32, generator=draw)
        _permute(base.model.model.embed_tokens, 1, order)
        _permute(base.model.lm_head, 1, order)
        for module in (m for layer in base.layers for m in layer.modules() if isinstance(m, torch.nn.Linear)):
            _permute(module, 1 if module in _readers(base) else 0, order)
    return base


def wider() -> Base:
    """Another width, in which nothing fits."""
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
    config = LlamaConfig(vocab_size=VOCAB, num_hidden_layers=LAYERS, initializer_range=0.1, **shape)  # type: ignore[arg-type]
    return _base(LlamaForCausalLM, config, "tiny-wider")


def saved(base: Base, folder: Path, like: Path) -> Path:
    """A Hugging Face folder with the tokenizer of another one."""
    base.model.save_pretrained(folder)
    for path in like.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def _readers(base: Base) -> set[torch.nn.Module]:
    return {m for n, m in base.model.named_modules() if n.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))}


def _parts(order: list[int], size: int) -> torch.Tensor:
    return torch.tensor([part * size + i for part in order for i in range(size)])


def _permute(module: torch.nn.Module, axis: int, order: torch.Tensor) -> None:
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    weight.data = weight.data.index_select(axis, order).contiguous()
