"""Imports go one way, Flower is met nowhere but at the edge, and files stay readable and free of pickle."""

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("configs", "strategies", "client", "server", "simulations")
FLOWER = {
    "client/answers.py",
    "client/app.py",
    "client/masking.py",
    "client/outgoing.py",
    "client/repeats.py",
    "client/resident.py",
    "client/secure_wire.py",
    "client/wire.py",
    "simulations/deploy/supernode.py",
    "simulations/deploy/faulty.py",
    "simulations/deploy/stranger.py",
    "server/app.py",
    "server/grid.py",
    "server/secure_grid.py",
    "server/unmasking.py",
    "server/flower_aggregator.py",
    "server/flower_strategy.py",
}
parsed = functools.cache(ast.parse)
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources(*layers: str) -> list[Path]:
    """Python files of layers."""
    return sorted(path for layer in layers for path in (ROOT / layer).rglob("*.py"))


def imported(source: str) -> set[str]:
    """Top-level names that a file imports anywhere: inside functions, under TYPE_CHECKING, by `import_module`, relatively."""
    found: set[str] = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else str(node.module).partition(".")[0])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                found.add(str(node.args[0].value).partition(".")[0])
    return found


def wrong(files: dict[str, str]) -> list[str]:
    """Imports against the order of layers, in files by their path from the root."""
    return [
        f"{path} imports {name}"
        for path, source in files.items()
        for name in sorted(imported(source) & {*LAYERS[LAYERS.index(path.partition("/")[0]) + 1 :], ".", "tests"})
    ]


def tree() -> dict[str, str]:
    """Every file of the five layers."""
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sources(*LAYERS)}


def test_a_layer_imports_only_from_layers_before_it() -> None:
    assert wrong(tree()) == []


FORMS = (
    "import server",
    "from server import rounds",
    "from server.rounds import run",
    "from . import node",
    "def f():\n    from simulations import run",
    "import importlib\nimportlib.import_module('server.x')",
)


@pytest.mark.parametrize("line", FORMS)
def test_each_form_of_import_against_the_order_is_noticed(line: str) -> None:
    assert len(wrong({"client/x.py": line})) == 1
    assert wrong({"client/x.py": "from strategies import tree\nimport client.base\nfrom configs.errors import InputError"}) == []


def test_flower_is_imported_only_where_the_program_meets_it() -> None:
    assert {path for path, source in tree().items() if "flwr" in imported(source)} <= FLOWER


def test_strategies_know_neither_models_nor_flower() -> None:
    for path in sources("configs", "strategies"):
        assert not imported(path.read_text()) & {"flwr", "transformers", "peft"}, path


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layers_init_holds_one_docstring_and_nothing_else(layer: str) -> None:
    body = ast.parse((ROOT / layer / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)
    assert isinstance(body[0].value, ast.Constant)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_package_is_a_real_one_and_lies_under_the_root(layer: str) -> None:
    assert Path(str(importlib.import_module(layer).__file__)).resolve() == ROOT / layer / "__init__.py"
    for folder in {path.parent for path in sources(layer)}:
        assert (folder / "__init__.py").is_file(), f"{folder} would be a namespace package"


def test_no_file_is_longer_than_400_lines() -> None:
    long = {path.name: n for path in sources(*LAYERS, "tests") if (n := len(path.read_text().splitlines())) > 400}
    assert not long, long


def calls(source: str) -> Iterator[tuple[str, set[str]]]:
    """(dotted function, names of keyword arguments) of every call."""
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Call):
            yield dotted(node.func), {str(k.arg) for k in node.keywords}


def dotted(node: ast.expr) -> str:
    """``torch.load`` of a function that is written so; of others the end."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_nothing_is_pickled() -> None:
    for path in sources(*LAYERS, "tests"):
        source = path.read_text()
        assert not imported(source) & PICKLES, path
        for name, keywords in calls(source):
            assert name not in ("torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"), path
            assert "allow_pickle" not in keywords, path
