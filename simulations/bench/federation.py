"""The federation of the Flower benchmark on our side, as a process of its own: ``python -m simulations.bench.federation``.

Everything from reading the model folder on is what `simulations.run` does for a scenario; only the users come from a file of
token ids instead of a data source.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from client.base import Base
from client.data.types import Dataset, Splits
from configs.scenario import Engine, Local, Model, Scenario
from simulations.bench.world import ADAPTER, LR, encoded
from simulations.training import World, train

USERS, START, OURS = "users.safetensors", "start.safetensors", "ours"
TOKENS_PER_PASS = 2048


def scenario(folder: Path, rounds: int, examples: int) -> Scenario:
    """FedAvg of one LoRA over everyone: one local epoch, a new AdamW each round."""
    training = Local(lr=LR, epochs=1, batch=examples, max_norm=0.0)
    return Scenario(
        name="bench", rounds=rounds, scheme="shared_only", aggregator="fedit", evaluate_every=0, controls=(),
        model=Model(str(folder / "model")), shared=ADAPTER, shared_training=training,
        engine=Engine(device="cpu", tokens_per_pass=TOKENS_PER_PASS, cache="none"),
    )  # fmt: skip


def run(folder: Path, rounds: int) -> None:
    """Run the federation in a folder that `prepare` filled; leave the last adapter, the losses and the rounds' ends."""
    ids = load_file(folder / USERS)
    splits = {user: Splits(encoded(found), (), ()) for user, found in sorted(ids.items())}
    model = AutoModelForCausalLM.from_pretrained(folder / "model").requires_grad_(False).eval()
    chosen = scenario(folder, rounds, len(next(iter(ids.values()))))
    world = World(Base(model, None, "random"), Dataset(splits, {}, "text", (), (), "one text"))
    marks: list[float] = []
    losses: list[float] = []

    def observe(row: dict[str, Any]) -> None:
        marks.append(time.time())
        losses.append(row["train_loss"])

    state, _ = train(chosen, world, folder / OURS, (), observe)
    save_file(state.shared, folder / f"{OURS}.safetensors")
    (folder / f"{OURS}.json").write_text(json.dumps({"marks": marks, "losses": losses}))


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
