"""What an adapter does on the old base it does on the new one, as far as the two bases are alike."""

from typing import Any

import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from client.adapters.layout import PREFIX
from client.base import Base
from client.migration.ground import ground
from client.migration.move import Loss, Mover
from client.split import Split, split
from client.tower import Tower
from configs.errors import InputError
from configs.scenario import Engine, Scenario, build
from strategies.migrators import MIGRATORS
from strategies.tree import State, generator
from tests.bases import doubled, drifted, moved, shorter, wider
from tests.conftest import LAYERS, llama

FREE = [name for name, make in MIGRATORS.items() if make().ways is not None]
KINDS = ("lora", "core", "mixed", "ia3", "prompt", "late_prompt")


def scenario(kind: str = "lora", layers: int = 0, **more: Any) -> Scenario:
    """A private adapter of a kind beside a shared LoRA, on all linear modules."""
    private = {"kind": kind, "rank": 3, "layers": layers, "tokens": 3}
    return build({"scheme": "dual", "shared": {"rank": 2, "layers": layers}, "private": private, **more})


def loud(parts: Split) -> State:
    """Numbers that nobody would mistake for a start."""
    draw = generator("loud")
    return {k: v + 0.3 * torch.randn(v.shape, generator=draw) for k, v in parts.start().items()}


def logits(base: Base, parts: Split, state: State, texts: Any) -> Tensor:
    """What a base says with adapters, at every predicting position."""
    tower = Tower(base, parts.layouts, Engine(cache="none"))
    try:
        blocks = [(x, {n: state[f"{x.block}/{n}"].unsqueeze(0) for n in x.names()}) for x in parts.layouts]
        with torch.no_grad():
            return base.model.get_output_embeddings()(tower(texts(1, 6), blocks).hidden_MD)
    finally:
        tower.close()


def mover(chosen: Scenario, old: Base, new: Base, how: str, texts: Any, **options: float) -> Mover:
    """From base to base."""
    there, here = split(chosen, old), split(chosen, new)
    ways = MIGRATORS[how](**options).ways
    assert ways is not None
    return Mover(there, here, ways(*(ground(b, s.layouts, texts(3, 20)) for b, s in ((old, there), (new, here)))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", FREE)
def test_a_base_and_itself_change_no_logit(how: str, kind: str, texts: Any) -> None:
    if (how, kind) == ("project", "ia3"):
        pytest.skip("is refused, below")
    chosen, base = scenario(kind), llama()
    moving = mover(chosen, base, llama(), how, texts)
    state = loud(moving.old)
    before, after = logits(base, moving.old, state, texts), logits(base, moving.new, moving.move(state), texts)
    if how == "project":
        assert torch.allclose(before, after, atol=2e-5)  # the rounding of two products; logits are about one
    else:
        assert moving.plain() and torch.equal(before, after)


def test_carry_keeps_every_change_of_a_weight_to_the_bit_also_on_another_base(texts: Any) -> None:
    moving = mover(scenario(), llama(), drifted(), "carry", texts)
    state, loss = loud(moving.old), Loss()
    after = moving.move(state, loss)
    assert after.keys() == state.keys() and all(torch.equal(after[k], state[k]) for k in state) and loss.share == 0.0


def test_layers_are_counted_from_the_top_and_what_has_no_place_is_counted_as_lost(texts: Any) -> None:
    moving = mover(scenario(), llama(), shorter(), "carry", texts)
    state, loss = loud(moving.old), Loss()
    after = moving.move(state, loss)
    name = "private/" + PREFIX + "model.layers.{}.mlp.up_proj.lora_A.weight"
    assert torch.equal(after[name.format(LAYERS - 2)], state[name.format(LAYERS - 1)]) and name.format(LAYERS - 1) not in after
    assert torch.equal(after[name.format(0)], state[name.format(1)]) and 0.2 < loss.share < 0.5


def test_the_cut_of_the_papers_is_a_projection(texts: Any) -> None:
    moving = mover(scenario(), llama(), llama(), "project", texts, rank=5, keep=0)
    state = loud(moving.old)
    once = moving.move(state)
    again = moving.move(once)
    name = f"private/{PREFIX}model.layers.2.mlp.down_proj.lora_B.weight"
    assert not torch.allclose(once[name], state[name], atol=0.05)
    assert all(torch.allclose(once[k], again[k], atol=1e-5) for k in once)


def test_project_takes_old_directions_into_the_new_bases_and_leaves_what_lies_outside(texts: Any) -> None:
    old, new, module = llama(), drifted(0.3), "model.layers.2.mlp.up_proj"
    u, v = (torch.linalg.svd(x.model.get_submodule(module).weight, full_matrices=False).U[:, :5] for x in (old, new))
    state = loud(split(scenario(), old))
    b = state[name := f"private/{PREFIX}{module}.lora_B.weight"]
    cut, kept = (mover(scenario(), old, new, "project", texts, rank=5, keep=k).move(state)[name] for k in (0, 1))
    assert torch.allclose(v @ v.T @ cut, cut, atol=1e-5) and torch.allclose(cut.norm(), (u.T @ b).norm(), atol=1e-4)
    assert torch.allclose(kept - cut, b - u @ u.T @ b, atol=1e-5)
    nearest = torch.from_numpy(orthogonal_procrustes(v.numpy(), u.numpy())[0])  # of all frames of the new directions
    assert torch.allclose(cut, v @ nearest @ u.T @ b, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("stream", [False, True])
def test_layers_undoes_heads_neurons_and_a_stream_in_other_places(kind: str, stream: bool, texts: Any) -> None:
    if stream and kind == "ia3":
        pytest.skip("scales of the stream are refused, below")
    chosen, old, new = scenario(kind), llama(), moved(stream=stream)
    bare = split(chosen, new)
    assert torch.allclose(
        logits(old, split(chosen, old), split(chosen, old).start(), texts), logits(new, bare, bare.start(), texts), atol=1e-5
    )
    moving = mover(chosen, old, new, "layers", texts)
    state = loud(moving.old)
    wanted = logits(old, moving.old, state, texts)
    assert torch.allclose(wanted, logits(new, moving.new, moving.move(state), texts), atol=1e-3 if stream else 1e-5)
    if not stream:
        carried = mover(chosen, old, new, "carry", texts).move(state)
        assert not torch.allclose(wanted, logits(new, moving.new, carried, texts), atol=0.1)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_layers_finds_a_layer_that_is_there_twice(layer: int, texts: Any) -> None:
    moving = mover(scenario(), llama(), doubled(layer), "layers", texts)
    sources = [int(moving.ways[f"model.layers.{i}.mlp.up_proj"].source.split(".")[2]) for i in range(LAYERS + 1)]
    assert sources == sorted([*range(LAYERS), layer])


def test_layers_takes_what_fits_to_another_width(texts: Any) -> None:
    moving = mover(scenario(), llama(), wider(), "layers", texts)
    state = loud(moving.old)
    after = moving.move(state)
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in moving.new.start().items()}
    assert torch.isfinite(logits(wider(), moving.new, after, texts)).all()


def test_a_core_becomes_the_nearest_one_that_the_new_factors_hold_and_says_what_is_lost(texts: Any) -> None:
    moving = mover(scenario("core", 1), llama(), drifted(0.3), "carry", texts)
    state, loss = loud(moving.old), Loss()
    after = moving.move({k: v for k, v in state.items() if k.startswith("private/")}, loss)
    gone = whole = 0.0
    for module in moving.new.layouts[1].modules:
        old, new = (x.layouts[1].constants[module] for x in (moving.old, moving.new))
        core = f"private/{PREFIX}{module}.core.weight"
        wanted = old["U"] @ state[core] @ old["V"]
        basis = torch.stack([torch.outer(new["U"][:, i], new["V"][j]).flatten() for i in range(3) for j in range(3)], 1)
        best = torch.linalg.lstsq(basis, wanted.flatten()[:, None]).solution.view(3, 3)
        assert torch.allclose(after[core], best, atol=1e-4)
        gone, whole = gone + float((wanted - new["U"] @ best @ new["V"]).norm() ** 2), whole + float(wanted.norm() ** 2)
    assert 0.01 < loss.share == pytest.approx(gone / whole, rel=1e-3)


@pytest.mark.parametrize(("how", "kind", "new", "said"), [
    ("carry", "lora", wider, "carry needs equal shapes: 'model.layers.0.self_attn.q_proj' is [32, 32] there and [48, 48] here"),
    ("project", "lora", wider, "project needs equal shapes"),
    ("carry", "prompt", wider, "carry needs equal shapes"),
    ("project", "ia3", drifted, "'ia3' scales outputs one by one"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(how: str, kind: str, new: Any, said: str, texts: Any) -> None:
    with pytest.raises(InputError) as told:
        moving = mover(scenario(kind), llama(), new(), how, texts)
        moving.move(loud(moving.old))
    assert said in str(told.value)


def test_control_variates_begin_anew_unless_nothing_changes(texts: Any) -> None:
    chosen = scenario(aggregator="scaffold", scheme="dual")
    for how, zero in (("carry", False), ("project", True)):
        moving = mover(chosen, llama(), drifted(), how, texts)
        control = {k: v for k, v in moving.move(loud(moving.old)).items() if k.partition("/")[0] not in ("shared", "private")}
        assert control and all((not v.any()) == zero for v in control.values())
