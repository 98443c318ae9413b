"""What is saved loads in stock PEFT and says the same; what PEFT saves loads here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from client.adapters.layout import Layout, layout
from client.base import Base
from client.data.types import Dataset, Encoded, Splits
from client.node import Node
from client.objective import logits
from client.peft_io import load_lora, save_user
from client.private import PrivateStore
from client.split import split
from client.store import origin
from client.store.manifest import Made
from client.tower import Tower
from client.train import Trainer
from configs import scenario as scenarios
from configs.errors import InputError
from configs.scenario import Adapter, Engine, Scenario
from server import checkpoint
from server.checkpoint import Checkpoint
from simulations.export import export_user
from strategies.tree import State, lead

SHARED = Adapter(rank=3, alpha=5.0, layers=2)
PRIVATE = {
    "lora": Adapter(rank=2, alpha=7.0, layers=3),
    "lora of the same scale": Adapter(rank=6, alpha=10.0, layers=1),
    "core": Adapter(kind="core", rank=4, alpha=3.0, layers=1),
    "mixed": Adapter(kind="mixed", rank=4, alpha=3.0, layers=1),
    "random core": Adapter(kind="core", rank=2, alpha=2.0, layers=3, factors="random"),
    "ia3": Adapter(kind="ia3", layers=2),
    "prompt": Adapter(kind="prompt", tokens=3),
}


def loud(layouts: tuple[Layout, ...]) -> State:
    """A user's state away from the start."""
    draw = torch.Generator().manual_seed(5)
    return {f"{x.block}/{n}": v + 0.1 * torch.randn(v.shape, generator=draw) for x in layouts for n, v in x.start.items()}


def said(base: Base, layouts: tuple[Layout, ...], state: State, ids: torch.Tensor) -> torch.Tensor:
    """The engine's logits after every token but the last."""
    tower = Tower(base, layouts, Engine())
    try:
        blocks = Trainer(tower, layouts, Engine()).blocks(lead(state))
        return logits(base, tower([Encoded(ids, 1, -1, 0)], blocks).hidden_MD)
    finally:
        tower.close()


def stock(base: Base, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What the folder's README says to do, with the base from disk."""
    home = folder.parent / "base"
    base.model.save_pretrained(home)
    model: Any = AutoModelForCausalLM.from_pretrained(home)
    if (folder / "shared").exists():
        model = PeftModel.from_pretrained(model, folder / "shared").merge_and_unload()  # type: ignore[operator]
        folder /= "private"
    model = PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        found = model(input_ids=ids[None]).logits[0]
    return found[-len(ids) :][:-1]


IDS = torch.arange(4, 16)


@pytest.mark.parametrize("kind", [kind for kind in PRIVATE if kind != "random core"])
@pytest.mark.parametrize("shared", [True, False], ids=["with shared", "alone"])
def test_a_saved_user_says_in_stock_peft_what_the_engine_says(any_base: Base, tmp_path: Path, kind: str, shared: bool) -> None:
    blocks = (layout("private", PRIVATE[kind], any_base, 0),)
    if shared:
        blocks = (layout("shared", SHARED, any_base, 0), *blocks)
    state = loud(blocks)
    save_user(any_base, blocks, state, tmp_path / "out")
    ours = said(any_base, blocks, state, IDS)
    assert float((ours - said(any_base, (), {}, IDS)).abs().max()) > 1e-2, "the adapters should do something"
    torch.testing.assert_close(stock(any_base, tmp_path / "out", IDS), ours, atol=1e-5, rtol=1e-4)


def test_a_shared_lora_alone_is_saved_as_it_is_and_read_back_bitwise(any_base: Base, tmp_path: Path) -> None:
    blocks = (layout("shared", SHARED, any_base, 0),)
    state = loud(blocks)
    save_user(any_base, blocks, state, tmp_path / "out")
    found = load_lora(tmp_path / "out", blocks[0])
    assert found.keys() == blocks[0].start.keys()
    assert all(torch.equal(found[n], state[f"shared/{n}"]) for n in found)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_trained_with_another_alpha_starts_a_run_with_the_same_logits(base: Base, tmp_path: Path, rslora: bool) -> None:
    block = layout("shared", SHARED, base, 0)
    home = tmp_path / "base"
    base.model.save_pretrained(home)
    config = LoraConfig(
        r=3, lora_alpha=9, use_rslora=rslora, target_modules=list(block.modules), alpha_pattern={"layers.2.mlp.down_proj": 4}
    )
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(home), config)
    torch.manual_seed(3)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "out")
    found = {f"shared/{n}": v for n, v in load_lora(tmp_path / "out", block).items()}
    with torch.no_grad():
        theirs = model.eval()(input_ids=IDS[None]).logits[0, :-1]
    torch.testing.assert_close(said(base, (block,), found, IDS), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rank": 4}, "rank 4"),
        ({"layers": 1}, "has 'model.layers.1"),
        ({"layers": 3}, "lacks 'model.layers.0"),
        ({"targets": ("q_proj",)}, "shared.targets"),
    ],
)
def test_a_lora_of_another_shape_is_refused_in_one_sentence(base: Base, tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    block = layout("shared", SHARED, base, 0)
    save_user(base, (block,), loud((block,)), tmp_path / "out")
    with pytest.raises(InputError, match=sentence) as caught:
        load_lora(tmp_path / "out", layout("shared", replace(SHARED, **change), base, 0))
    assert "\n" not in str(caught.value)


def test_what_is_no_plain_lora_is_refused_in_one_sentence(base: Base, tmp_path: Path) -> None:
    block, ia3 = layout("shared", SHARED, base, 0), layout("private", PRIVATE["ia3"], base, 0)
    with pytest.raises(InputError, match="no adapter saved by PEFT"):
        load_lora(tmp_path / "nothing", block)
    save_user(base, (ia3,), loud((ia3,)), tmp_path / "ia3")
    with pytest.raises(InputError, match="kind IA3"):
        load_lora(tmp_path / "ia3", block)
    save_user(base, (block,), loud((block,)), tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        load_lora(tmp_path / "cut", block)
    save_user(base, (block,), loud((block,)), tmp_path / "dora")
    settings = tmp_path / "dora" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(InputError, match="use_dora"):
        load_lora(tmp_path / "dora", block)


def test_a_folder_in_use_is_left_alone(base: Base, tmp_path: Path) -> None:
    block = layout("shared", SHARED, base, 0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty"):
        save_user(base, (block,), loud((block,)), tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    (tmp_path / "empty").mkdir()
    save_user(base, (block,), loud((block,)), tmp_path / "empty")
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_nothing_half_written_remains(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = layout("shared", SHARED, base, 0)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("client.peft_io.write_text", full)
    with pytest.raises(OSError, match="no space"):
        save_user(base, (block,), loud((block,)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ out of a run
def ran(folder: Path, base: Base, scheme: str, kind: str, texts: Callable[..., list[Encoded]]) -> tuple[Scenario, Dataset]:
    """A run's folder after one round, made by a node itself."""
    scenario = Scenario(scheme=scheme, rounds=1, shared=SHARED, private=PRIVATE[kind], shared_training=scenarios.Local(lr=0.05))
    splits = {u: Splits(tuple(texts(i, 4)), tuple(texts(i, 1)), tuple(texts(i, 1))) for i, u in enumerate(("ann", "bob"))}
    data = Dataset(splits, {"eve": splits["ann"]}, "answer", (), (), "text")
    node = Node(scenario, base, data, PrivateStore(folder / "private"))
    try:
        from server import rounds
        from server.finish import users_csv
        from simulations.fused import FusedRuntime
        from strategies.base import Task

        start = node.split.shared_start()
        last = rounds.run(scenario, FusedRuntime(node), node.split.aggregator, start, folder, origin=node.origin)
        table = node.evaluate(Task(last.round + 1, last.shared), "test", ("base", "shared"))
        (folder / "users.csv").write_text(users_csv(table))
    finally:
        node.close()
    return scenario, data


@pytest.mark.parametrize(
    ("scheme", "kind"), [("dual", "core"), ("dual", "ia3"), ("fedsa", "core"), ("fedrep", "mixed"), ("fedrep", "lora"),
                         ("shared_only", "core"), ("local_only", "ia3"), ("ditto", "core"), ("apfl", "core"), ("fedalt", "core"),
                         ("finetune", "core")]
)  # fmt: skip
def test_an_exported_user_is_the_one_that_the_run_scores(
    base: Base, tmp_path: Path, texts: Callable[..., list[Encoded]], scheme: str, kind: str
) -> None:
    scenario, _ = ran(tmp_path / "run", base, scheme, kind, texts)
    text = export_user(tmp_path / "run", "bob", tmp_path / "out", base)
    assert "PeftModel.from_pretrained" in text
    assert (tmp_path / "out" / "README.md").read_text() == text
    parts, last = split(scenario, base), checkpoint.latest(tmp_path / "run")
    assert last is not None
    own = PrivateStore(tmp_path / "run" / "private").load("bob", 2) or {}
    assert bool(own) == (scheme not in ("shared_only", "finetune"))
    received = {**parts.start(), **{parts.key(n): v for n, v in last.shared.items()}}
    layouts, state = parts.model({**received, **parts.own(parts.start(), received), **own})
    torch.testing.assert_close(stock(base, tmp_path / "out", IDS), said(base, layouts, state, IDS), atol=1e-5, rtol=1e-4)
    if scheme in ("ditto", "apfl", "fedalt"):
        assert len(layouts) == 1 + (scheme == "fedalt"), "a copy stands in the shared adapter's place"


def test_a_model_that_is_another_for_each_text_is_not_exported(base: Base, tmp_path: Path, texts: Callable[..., list[Encoded]]) -> None:
    ran(tmp_path / "run", base, "feddpa_t", "core", texts)
    with pytest.raises(InputError, match="weighs a user's adapters anew for each text"):
        export_user(tmp_path / "run", "bob", tmp_path / "out", base)
    assert not (tmp_path / "out").exists()
    assert "PeftModel" in export_user(tmp_path / "run", "eve", tmp_path / "out", base), "who has nothing private has the shared adapter"


def test_factors_fitted_to_public_texts_are_fitted_again(
    base: Base, tmp_path: Path, texts: Callable[..., list[Encoded]], monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Adapter(kind="core", rank=3, layers=1, targets=("down_proj",), factors="fisher")
    scenario = Scenario(scheme="dual", rounds=1, shared=SHARED, private=private)
    splits = Splits(tuple(texts(1, 4)), (), ())
    data = Dataset({"bob": splits}, {}, "answer", (), (), "text", tuple(texts(9, 8)))
    monkeypatch.setattr("client.data.load", lambda *_: data)
    node = Node(scenario, base, data, PrivateStore(tmp_path / "run" / "private"))
    node.close()
    state = loud(node.split.layouts)
    own = {k: v for k, v in state.items() if k.startswith("private/")}
    PrivateStore(tmp_path / "run" / "private").save("bob", 1, own, Made(node.origin))
    checkpoint.begin(tmp_path / "run", scenario)
    shared = {n.partition("/")[2]: state[n] for n in state.keys() - own.keys()}
    checkpoint.commit(tmp_path / "run", Checkpoint(1, shared, {}, [], node.origin._replace(adapter="")))
    export_user(tmp_path / "run", "bob", tmp_path / "out", base)
    torch.testing.assert_close(stock(base, tmp_path / "out", IDS), said(base, node.split.layouts, state, IDS), atol=1e-5, rtol=1e-4)


def test_an_unseen_user_gets_the_shared_adapter_alone(base: Base, tmp_path: Path, texts: Callable[..., list[Encoded]]) -> None:
    scenario, _ = ran(tmp_path / "run", base, "dual", "prompt", texts)
    export_user(tmp_path / "run", "eve", tmp_path / "out", base)
    last = checkpoint.latest(tmp_path / "run")
    assert last is not None
    block = layout("shared", scenario.shared, base, scenario.seed)
    found = load_lora(tmp_path / "out", block)
    assert all(torch.equal(found[n], last.shared[n]) for n in found)


def test_a_persons_mistakes_are_one_sentence_each(base: Base, tmp_path: Path, texts: Callable[..., list[Encoded]]) -> None:
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=r"no scenario\.yaml"):
        export_user(folder, "bob", tmp_path / "out", base)
    checkpoint.begin(folder, Scenario())
    with pytest.raises(InputError, match="no finished round"):
        export_user(folder, "bob", tmp_path / "out", base)
    ran(tmp_path / "other", base, "local_only", "lora", texts)
    with pytest.raises(InputError, match="did you mean 'bob'"):
        export_user(tmp_path / "other", "bobb", tmp_path / "out", base)
    with pytest.raises(InputError, match="'eve' took no part"):
        export_user(tmp_path / "other", "eve", tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_table_of_users_asks_its_data_for_them(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = Scenario(scheme="shared_only", shared=SHARED)
    checkpoint.begin(tmp_path / "run", scenario)
    parts = split(scenario, base)
    made = origin.of(scenario.seed, base, parts)._replace(adapter="")
    checkpoint.commit(tmp_path / "run", Checkpoint(1, parts.shared_start(), {}, [], made))
    nobody = Splits((), (), ())
    monkeypatch.setattr("client.data.load", lambda *_: Dataset({"ann": nobody}, {}, "answer", (), (), "text"))
    with pytest.raises(InputError, match="did you mean 'ann'"):
        export_user(tmp_path / "run", "anna", tmp_path / "out", base)
    export_user(tmp_path / "run", "ann", tmp_path / "out", base)
    assert (tmp_path / "out" / "README.md").is_file()
