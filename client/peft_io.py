"""Adapters in and out of PEFT's format, so that stock PEFT loads what a user has here, and a run can start from what PEFT saved.

What one user has becomes one folder. LoRA and core, shared and private, add up to *one* LoRA: their factors stand side by side,

    s1 B1 A1 + s2 B2 A2 + s3 U M V  =  s [B1, B2, U M] [A1; A2; V]    for equal scales s, else with s = 1 and the scales in B.

So does what an aggregator has changed of the base, as a product of as many ranks as it has.

(IA)^3 and soft prompts cannot be one adapter with a LoRA. Beside a shared one they go into ``private/`` and that one into ``shared/``;
it is merged into the base first. The folder's README says which of the two it is.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from client.adapters.late_prompt import KIND as LATE
from client.adapters.layout import PREFIX, Layout
from client.adapters.lora import DELTA
from client.adapters.mixed import mix
from client.adapters.prompt import NAME as PROMPT
from client.base import Base
from configs.errors import InputError
from strategies.files import read_state, write_state, write_text
from strategies.tree import State

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

ONE = """# {title}

An adapter in PEFT's format.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, {folder!r}).eval()
```
"""
TWO = """# {title}

Two adapters in PEFT's format: `shared` is merged into the base, `private` is applied over it.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base!r})
merged = PeftModel.from_pretrained(base, {folder!r} + "/shared").merge_and_unload()
model = PeftModel.from_pretrained(merged, {folder!r} + "/private").eval()
```
"""


def save_user(base: Base, layouts: Sequence[Layout], state: State, out: Path, title: str = "One user's model") -> str:
    """Write one user's model (``state``: "block/name" -> tensor, without a user axis) and return the text of its README.

    ``out`` comes into being whole or not at all. Raises `InputError` if it exists and is not empty.
    """
    if not layouts:
        raise InputError("there is no adapter to save")
    for found in layouts:
        if found.config.kind == LATE:
            raise InputError(
                f"{found.block}.kind={LATE} is no adapter that PEFT knows; train with {found.block}.kind=prompt for one that it loads"
            )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; choose another folder")
    added = [x for x in layouts if x.config.kind in ("lora", "core", "mixed")]
    alone = [x for x in layouts if x not in added]
    text = (TWO if added and alone else ONE).format(title=title, base=model_name(base), folder=str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        scratch.chmod(0o755)
        if added:
            _write(scratch / "shared" if alone else scratch, *_lora(base, added, state))
        for found in alone:
            _write(scratch / "private" if added else scratch, *_alone(base, found, state))
        write_text(scratch / "README.md", text)
        if out.exists():
            out.rmdir()
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return text


def load_lora(path: Path, layout: Layout) -> State:
    """Read a LoRA that PEFT saved into the names, shapes and scale of ``layout``.

    Raises `InputError` unless it is a plain LoRA of the layout's rank on exactly its target modules.
    """
    try:
        config = json.loads((path / CONFIG).read_text())
        found = read_state(path / WEIGHTS)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no adapter saved by PEFT: {str(error).splitlines()[0]}") from None
    except Exception as error:  # safetensors has an error of its own for a damaged file
        raise InputError(f"{path / WEIGHTS} cannot be read: {str(error).splitlines()[0]}") from None
    _check_plain(path, config)
    wanted = {name for name in layout.start if not name.endswith(DELTA)}
    missing, extra = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    if missing or extra:
        name = (missing or extra)[0].removeprefix(PREFIX)
        has = "lacks" if missing else "has"
        raise InputError(f"{path} {has} '{name}': its targets are not those of {layout.block}.targets and {layout.block}.layers")
    for name, value in found.items():
        if value.shape != layout.start[name].shape:
            got, want = list(value.shape), list(layout.start[name].shape)
            raise InputError(
                f"{path}: '{name.removeprefix(PREFIX)}' is {got} where {layout.block}.rank {layout.config.rank} asks for {want}"
            )
    ours = layout.config.alpha / layout.config.rank
    ratio = {m: _scale(config, m) / ours for m in layout.modules}
    return {n: v.float() * ratio[_module(n)] if ".lora_B." in n else v.float() for n, v in found.items()}


def model_name(base: Base) -> str:
    """What `from_pretrained` takes for this base."""
    return getattr(base.model.config, "_name_or_path", "") or base.name


# ---------------------------------------------------------------------- writing
def _write(folder: Path, config: Any, state: State) -> None:
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    write_state(folder / WEIGHTS, state)


def _lora(base: Base, layouts: Sequence[Layout], state: State) -> tuple[Any, State]:
    from peft import LoraConfig

    terms: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
    for found in layouts:
        for module in found.modules:
            terms.setdefault(module, []).extend(_terms(found, module, state))
    tensors, ranks, alphas = {}, {}, {}
    for module, parts in terms.items():
        a, b, scale = _side_by_side(parts)
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        ranks[module], alphas[module] = len(a), scale * len(a)
    rank, alpha = (Counter(x.values()).most_common(1)[0][0] for x in (ranks, alphas))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=model_name(base),
        inference_mode=True,
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        rank_pattern={m: r for m, r in ranks.items() if r != rank},
        alpha_pattern={m: a for m, a in alphas.items() if a != alpha},  # type: ignore[misc]
        target_modules=list(terms),
        fan_in_fan_out=_turned(base, list(terms)),
    )
    return config, tensors


def _terms(found: Layout, module: str, state: State) -> list[tuple[Tensor, Tensor, float]]:
    """A [R, I], B [O, R] and the scale of each s B A that one adapter adds to a module's weight."""

    def of(suffix: str) -> Tensor:
        return state[f"{found.block}/{PREFIX}{module}.{suffix}"].detach().float()

    scale = found.config.alpha / found.config.rank
    if found.config.kind == "lora":
        changed = [(*_factored(of(DELTA)), scale)] if f"{PREFIX}{module}.{DELTA}" in found.start else []
        return [(of("lora_A.weight"), of("lora_B.weight"), scale), *changed]
    factors, core = found.constants[module], of("core.weight")
    if found.config.kind == "mixed":
        core = core @ mix(of("mix.weight"))
    return [(factors["V"].float(), factors["U"].float() @ core, scale)]


def _factored(delta_OI: Tensor) -> tuple[Tensor, Tensor]:
    """A [R, I] and B [O, R] whose product is the matrix, up to its own rounding: what lies below that is no rank."""
    u, s, v = torch.linalg.svd(delta_OI.double(), full_matrices=False)
    rank = int((s > torch.finfo(torch.float32).eps * s[0]).sum())
    return v[:rank].float(), (u[:, :rank] * s[:rank]).float()


def _side_by_side(parts: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, float]:
    scales = {scale for _, _, scale in parts}
    common = scales.pop() if len(scales) == 1 else 1.0
    return torch.cat([a for a, _, _ in parts]), torch.cat([b * (s / common) for _, b, s in parts], 1), common


def _alone(base: Base, found: Layout, state: State) -> tuple[Any, State]:
    from peft import IA3Config, PromptTuningConfig

    tensors = {n: state[f"{found.block}/{n}"].detach().float() for n in found.names()}
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "base_model_name_or_path": model_name(base), "inference_mode": True}
    if found.config.kind == "ia3":
        modules = list(found.modules)
        return IA3Config(target_modules=modules, feedforward_modules=[], fan_in_fan_out=_turned(base, modules), **common), tensors
    shape, depth = tensors[PROMPT].shape, base.model.config
    config = PromptTuningConfig(
        num_virtual_tokens=shape[0],
        token_dim=shape[1],
        num_layers=depth.num_hidden_layers,
        num_attention_heads=depth.num_attention_heads,
        num_transformer_submodules=1,
        **common,
    )
    return config, tensors


def _turned(base: Base, modules: Sequence[str]) -> bool:
    """Whether the modules keep their weight as [d_in, d_out], as GPT-2's do."""
    return any(isinstance(base.model.get_submodule(m), Conv1D) for m in modules)


# ---------------------------------------------------------------------- reading
def _check_plain(path: Path, config: dict[str, Any]) -> None:
    kind = str(config.get("peft_type"))
    if kind != "LORA":
        raise InputError(f"{path} holds an adapter of kind {kind}; only a LORA can be shared")
    for name in ("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "lora_bias"):
        if config.get(name):
            raise InputError(f"{path} uses PEFT's '{name}', which a LoRA here has not")
    if config.get("bias", "none") != "none":
        raise InputError(f"{path} trains biases (bias='{config['bias']}'), which a LoRA here does not")


def _scale(config: dict[str, Any], module: str) -> float:
    from peft.utils.other import get_pattern_key

    patterns = {name: config.get(f"{name}_pattern") or {} for name in ("rank", "alpha")}
    rank = patterns["rank"].get(get_pattern_key(list(patterns["rank"]), module), config["r"])
    alpha = patterns["alpha"].get(get_pattern_key(list(patterns["alpha"]), module), config["lora_alpha"])
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def _module(name: str) -> str:
    return name.removeprefix(PREFIX).partition(".lora_")[0]
