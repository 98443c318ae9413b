"""The three ways into the frozen stack say the same, and no cache changes a result."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from client.adapters.layout import Layout, layout
from client.base import Base
from client.cache import ActivationCache, fingerprint
from client.data.types import Encoded
from client.tower import Predicting, Tower, Way
from client.train import Learner, Trainer
from configs.scenario import Adapter, Engine, Local
from strategies.tree import State, stack

Texts = Callable[..., list[Encoded]]
TOP = ("o_proj", "up_proj", "down_proj", "c_proj", "c_fc")  # of all architectures here; neither keys nor values
KINDS = ("lora", "core", "ia3")


def block_of(base: Base, kind: str = "lora", layers: int = 1, targets: tuple[str, ...] | None = None) -> Layout:
    """A private adapter on the top; by default where `keys` applies."""
    suffixes = {name.rpartition(".")[2] for name, _ in base.model.named_modules()}
    chosen = targets or tuple(t for t in TOP if t in suffixes)
    return layout("private", Adapter(kind=kind, rank=3, layers=layers, targets=chosen), base, 0)  # type: ignore[arg-type]


def loud(block: Layout, user: int) -> State:
    """A user's state away from the start."""
    draw = torch.Generator().manual_seed(user)
    return {n: v + 0.1 * torch.randn(v.shape, generator=draw) for n, v in block.start.items()}


def seen(base: Base, block: Layout, way: Way, rows: list[Encoded], users: int) -> Predicting:
    """One pass by the given way."""
    tower = Tower(base, (block,), Engine())
    try:
        tower.way = way
        tower.cache = ActivationCache(2**20)
        tower(rows, [])  # the second time everything is in the cache
        return tower(rows, [(block, stack([loud(block, u) for u in range(users)]))])
    finally:
        tower.close()


def trained(base: Base, block: Layout, texts: Texts, engine: Engine = Engine(), way: Way | None = None,  # noqa: B008
            cache: ActivationCache | None = None, task: str = "answer") -> list[State]:  # fmt: skip
    """Three users after two epochs."""
    tower = Tower(base, (block,), engine)
    try:
        tower.way, tower.cache = way or tower.way, cache or tower.cache
        tower.warm(texts(0, 2, task=task))
        learners = [
            Learner({f"private/{n}": v for n, v in loud(block, u).items()}, texts(u, 1 + 2 * u, task=task), [], (u,)) for u in range(3)
        ]
        labels = (4, 5) if task == "choice" else ()
        local = Local(optimizer="sgd", lr=0.2, batch=2, epochs=2)
        return Trainer(tower, (block,), engine, labels).train(learners, lambda _: True, local)[0]
    finally:
        tower.close()


def apart(a: list[State], b: list[State]) -> float:
    """The largest difference."""
    return max(float((x[n] - y[n]).abs().max()) for x, y in zip(a, b, strict=True) for n in x)


# ------------------------------------------------------------------ which way
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("targets", "way"), [(("q_proj",), "keys"), (("o_proj",), "keys"), (("gate_proj", "up_proj"), "keys"),
                                              (("down_proj",), "tail"), (("up_proj", "down_proj"), "keys"),
                                              (("k_proj",), "hidden"), (("v_proj",), "hidden"),
                                              (("v_proj", "down_proj"), "hidden"), (("all-linear",), "hidden")])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_cached_is_as_far_up_as_the_adapters_allow(
    base: Base, kind: str, targets: tuple[str, ...], way: str, dtype: torch.dtype
) -> None:
    base.model.to(dtype)
    tower = Tower(base, (block_of(base, kind, targets=targets),), Engine())
    tower.close()
    assert tower.way == way


def test_below_a_second_layer_hidden_states_are_cached_and_below_the_first_nothing(any_base: Base) -> None:
    for layers, way in ((1, "keys"), (2, "hidden"), (3, "ids"), (0, "ids")):
        tower = Tower(any_base, (block_of(any_base, layers=layers),), Engine())
        tower.close()
        assert tower.way == way
    for blocks in ((), (layout("private", Adapter(kind="prompt"), any_base, 0),)):
        tower = Tower(any_base, blocks, Engine())
        tower.close()
        assert tower.way == "ids"


def test_keys_are_not_cached_where_the_top_layer_looks_through_a_window() -> None:
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                           num_key_value_heads=2, sliding_window=16)  # fmt: skip
    base = Base(MistralForCausalLM(config).requires_grad_(False).eval(), None, "tiny-mistral")
    rows = [Encoded(torch.arange(3, 43), 20, -1, 0)]
    block = block_of(base)
    tower = Tower(base, (block,), Engine())
    tower.close()
    assert tower.way == "hidden"
    torch.testing.assert_close(seen(base, block, tower.way, rows, 1).hidden_MD, seen(base, block, "ids", rows, 1).hidden_MD)


# ------------------------------------------------------------------ the same by every way
def test_below_the_last_module_of_any_architecture_everything_is_cached(any_base: Base, texts: Texts) -> None:
    last = next(n for n, _ in list(any_base.model.named_modules())[::-1] if n.endswith(("down_proj", "mlp.c_proj")))
    for kind in (*KINDS, "mixed"):
        block = block_of(any_base, kind, targets=(last,))
        tower = Tower(any_base, (block,), Engine())
        tower.close()
        assert tower.way == "tail"
        for task in ("text", "answer", "choice"):
            rows = [*texts(1, 3, task=task), *texts(2, 3, task=task)]
            plain, other = (seen(any_base, block, way, rows, 2) for way in ("ids", "tail"))
            assert torch.equal(other.row_M, plain.row_M) and torch.equal(other.target_M, plain.target_M)
            torch.testing.assert_close(other.hidden_MD, plain.hidden_MD, atol=2e-5, rtol=1e-5)


def test_where_the_modules_output_is_not_added_as_it_is_the_tail_is_not_cached() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                          num_key_value_heads=2, head_dim=8, initializer_range=0.1)  # fmt: skip
    base = Base(Gemma2ForCausalLM(config).requires_grad_(False).eval(), None, "tiny-gemma2")  # has a norm after its feed-forward
    tower = Tower(base, (block_of(base, targets=("down_proj",)),), Engine())
    tower.close()
    assert tower.way != "tail"


@pytest.mark.parametrize(("kind", "task"), [("lora", "text"), ("core", "answer"), ("ia3", "choice"), ("lora", "choice")])
def test_three_ways_in_see_the_same_hidden_states(any_base: Base, texts: Texts, kind: str, task: str) -> None:
    block = block_of(any_base, kind)
    rows = [*texts(1, 3, task=task), *texts(2, 3, task=task)]
    plain = seen(any_base, block, "ids", rows, 2)
    for way in ("hidden", "keys"):
        other = seen(any_base, block, way, rows, 2)
        assert torch.equal(other.row_M, plain.row_M)
        assert torch.equal(other.target_M, plain.target_M)
        torch.testing.assert_close(other.hidden_MD, plain.hidden_MD, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("task", ["answer", "choice"])
def test_three_ways_in_train_the_same_adapters(any_base: Base, texts: Texts, task: str) -> None:
    block = block_of(any_base)
    plain = trained(any_base, block, texts, way="ids", task=task)
    for way in ("hidden", "keys"):
        assert apart(plain, trained(any_base, block, texts, way=way, task=task)) < 1e-6


def test_checkpointing_goes_with_every_way_in(base: Base, texts: Texts) -> None:
    block = block_of(base)
    for way in ("ids", "hidden", "keys"):
        assert apart(trained(base, block, texts, way=way), trained(base, block, texts, Engine(checkpointing=True), way)) < 1e-6


def test_attention_written_out_takes_cached_keys_too(texts: Texts, base: Base) -> None:
    block = block_of(base)
    plain = trained(base, block, texts)
    base.model.set_attn_implementation("eager")
    assert apart(plain, trained(base, block, texts)) < 1e-6


# ------------------------------------------------------------------ the store
@pytest.mark.parametrize("layers", [1, 2])
def test_no_cache_a_tiny_one_and_one_on_disk_give_the_same_adapters(
    base: Base, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    monkeypatch.setenv("HOMING_CACHE", str(tmp_path))
    block = block_of(base, layers=layers)
    plain = trained(base, block, texts, Engine(cache="memory"))
    assert apart(plain, trained(base, block, texts, Engine(cache="none"))) < 1e-6
    tiny = ActivationCache(5000)
    assert apart(plain, trained(base, block, texts, cache=tiny)) < 1e-6
    assert 0 < tiny.held <= 5000
    for _ in range(2):  # written, then read
        assert apart(plain, trained(base, block, texts, Engine(cache="disk"))) < 1e-6
    assert len(list(tmp_path.rglob("*.safetensors"))) == 10  # nine that were trained on, one that was only warmed
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_damaged_entry_on_disk_is_ignored(base: Base, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMING_CACHE", str(tmp_path))
    block = block_of(base)
    plain = trained(base, block, texts, Engine(cache="disk"))
    files = sorted(tmp_path.rglob("*.safetensors"))
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-7])
    files[2].write_bytes(b"not a tensor in sight")
    assert apart(plain, trained(base, block, texts, Engine(cache="disk"))) < 1e-6


def test_a_bound_holds_for_memory_and_disk_alike(tmp_path: Path) -> None:
    cache = ActivationCache(1000, tmp_path)
    for i in range(10):
        cache.put(bytes([i]), {"hidden": torch.full((50,), float(i))})  # 200 bytes each
    assert cache.held == 1000
    assert cache.on_disk <= 1000
    fresh = ActivationCache(10_000, tmp_path)
    for i in range(10):
        found = fresh.get(bytes([i]))
        assert found is None or torch.equal(found["hidden"], torch.full((50,), float(i)))
    assert fresh.get(b"\x00") is not None
    assert fresh.get(b"\x09") is None


def test_an_entry_written_twice_is_counted_once() -> None:
    cache = ActivationCache(1000)
    for _ in range(3):
        cache.put(b"x", {"hidden": torch.zeros(50)})
    assert cache.held == 200


def test_the_folder_on_disk_belongs_to_one_base_and_dtype(base: Base) -> None:
    mine = fingerprint(base.model)
    assert mine == fingerprint(base.model)
    weight = base.model.model.layers[1].mlp.down_proj.weight
    weight[0, 0] += 1.0
    other = fingerprint(base.model)
    base.model.to(torch.bfloat16)
    assert len({mine, other, fingerprint(base.model)}) == 3


def test_equal_texts_of_two_users_share_an_entry_and_another_start_does_not(base: Base, texts: Texts) -> None:
    tower = Tower(base, (block_of(base),), Engine())
    one = texts(0, 1)[0]
    tower.warm([one, Encoded(one.ids.clone(), one.start, -1, 7), Encoded(one.ids, one.start + 1, -1, 0)])
    tower.close()
    assert len(tower.cache.entries) == 2


def test_texts_that_differ_in_one_token_anywhere_have_an_entry_each(base: Base, texts: Texts) -> None:
    tower = Tower(base, (block_of(base),), Engine())
    one = texts(0, 1, length=6)[0]
    others = [Encoded(one.ids + torch.eye(6, dtype=torch.long)[i], one.start, -1, 0) for i in range(6)]
    tower.warm([one, *others])
    tower.close()
    assert len(tower.cache.entries) == 7


# ------------------------------------------------------------------ giving the base back
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_close_leaves_the_base_as_it_was(any_base: Base, texts: Texts, layers: int) -> None:
    def state() -> tuple[torch.Tensor, list[Any]]:
        with torch.no_grad():
            found = any_base.model(input_ids=torch.arange(3, 15)[None]).logits
        modules = any_base.model.modules()
        return found, [(len(m._forward_hooks), len(m._forward_pre_hooks), m.forward.__func__) for m in modules]

    before, hooks = state()
    weights = {n: v.clone() for n, v in any_base.model.state_dict().items()}
    trained(any_base, block_of(any_base, layers=layers), texts, Engine(checkpointing=layers == 2))
    after, left = state()
    assert torch.equal(before, after)
    assert hooks == left
    assert all(torch.equal(v, weights[n]) for n, v in any_base.model.state_dict().items())
    assert not any(p.requires_grad for p in any_base.model.parameters())


def test_a_pass_without_the_soft_prompt_is_cached_and_one_with_it_is_not(any_base: Base, texts: Texts) -> None:
    block, soft = block_of(any_base), layout("private", Adapter(kind="prompt", tokens=2), any_base, 0)
    soft = replace(soft, block="soft")
    rows, one = texts(0, 2), [(block, stack([loud(block, u) for u in range(2)]))]
    both = [(soft, stack([loud(soft, u) for u in range(2)])), *one]

    def passed(way: Way | None, blocks: Any) -> Tensor:
        tower = Tower(any_base, (soft, block), Engine())
        try:
            assert tower.way != "ids"
            tower.way, tower.cache = way or tower.way, ActivationCache(2**20)
            tower(rows, [])
            assert bool(tower.cache.entries) is (way is None)
            tower.cache.get = None if blocks is both else tower.cache.get  # type: ignore[assignment, method-assign] - nobody may ask
            return tower(rows, blocks).hidden_MD
        finally:
            tower.close()

    for blocks in (one, both):
        torch.testing.assert_close(passed(None, blocks), passed("ids", blocks))
    assert not torch.allclose(passed(None, one), passed(None, both))


def test_a_planner_counts_all_of_a_text_where_a_soft_prompt_may_come_before_it(base: Base) -> None:
    block, soft = block_of(base), replace(layout("private", Adapter(kind="prompt"), base, 0), block="soft")
    for layouts, positions, depth in (((block,), 1, 1), ((soft, block), 12, len(base.layers))):
        tower = Tower(base, layouts, Engine())
        tower.close()
        assert (tower.positions(Encoded(torch.arange(12), 12, -1, 0)), tower.depth()) == (positions, depth)
