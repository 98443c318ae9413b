"""Imports go one way, and Flower is met nowhere but at the edge."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("configs", "strategies", "client", "server", "simulations")


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_a_layer_imports_only_from_layers_before_it() -> None:
    wrong = [
        (str(path), name)
        for depth, layer in enumerate(LAYERS)
        for path in (ROOT / layer).rglob("*.py")
        for name in imported(path) & set(LAYERS[depth + 1 :])
    ]
    assert wrong == []


def test_strategies_know_neither_models_nor_flower() -> None:
    for path in (ROOT / "strategies").rglob("*.py"):
        assert not imported(path) & {"flwr", "transformers", "peft"}, path
