"""A usual Flower app for language models, as text that a benchmark writes into a folder of its own.

It is self-contained: it knows PEFT and Flower, and nothing of this project. With ``resident = true`` a client keeps its
model between messages, which few published apps do and which a deployment (a new process per message) cannot.
"""

from pathlib import Path

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "usual"
version = "1.0.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "usual.server:app"
clientapp = "usual.client:app"

[tool.flwr.app.config]
folder = ""
num-rounds = 2
users = 2
resident = false
lr = 0.001
rank = 8
alpha = 16
"""

CLIENT = '''\
"""A client: load the model, set the adapter, train, send the adapter back."""

from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM

app = ClientApp()
KEPT = {}


def model_of(config):
    if "model" in KEPT:
        return KEPT["model"]
    base = AutoModelForCausalLM.from_pretrained(Path(config["folder"]) / "model", dtype=torch.float32)
    lora = LoraConfig(r=config["rank"], lora_alpha=config["alpha"], target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(base, lora)
    if config["resident"]:
        KEPT["model"] = model
    return model


@app.train()
def train(message: Message, context: Context) -> Message:
    config = context.run_config
    model = model_of(config)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    with safe_open(Path(config["folder"]) / "users.safetensors", "pt") as users:
        ids = users.get_tensor(str(context.node_config["partition-id"]))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=config["lr"], weight_decay=0.0)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    metrics = MetricRecord({"num-examples": len(ids), "loss": loss.item()})
    return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)
'''

SERVER = '''\
"""A server: FedAvg over everyone; notes when each round is over and keeps the last adapter."""

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file, save_file

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    folder, users = Path(config["folder"]), config["users"]
    times = []

    def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        times.append(time.time())
        return MetricRecord({})

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=users, min_available_nodes=users)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(load_file(folder / "start.safetensors")),
        num_rounds=config["num-rounds"],
        evaluate_fn=note,
    )
    losses = [dict(result.train_metrics_clientapp[r])["loss"] for r in sorted(result.train_metrics_clientapp)]
    save_file(result.arrays.to_torch_state_dict(), folder / "flower.safetensors")
    (folder / "flower.json").write_text(json.dumps({"marks": times, "losses": losses}))
'''


def write(folder: Path) -> Path:
    """Write the app into a new folder ``usual-app`` and return it."""
    app = folder / "usual-app"
    (app / "usual").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PYPROJECT)
    (app / "usual" / "__init__.py").write_text('"""A usual Flower app."""\n')
    (app / "usual" / "client.py").write_text(CLIENT)
    (app / "usual" / "server.py").write_text(SERVER)
    return app
