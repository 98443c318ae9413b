"""What Flower packs for its nodes: the packages that its apps import with the scenarios; no simulations, no tests."""

import ast
import io
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_files
from flwr.common.config import flatten_dict, validate_config

# Flower still names its ignore patterns the way that pathspec 1.0 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("configs", "strategies", "client", "server")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
APP = PROJECT["tool"]["flwr"]["app"]


def files(*folders: str) -> dict[str, Path]:
    """Files by their path from the root, as ``flwr build`` collects them; the environment is left out for speed."""
    return {p.relative_to(ROOT).as_posix(): p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def bundle() -> zipfile.ZipFile:
    rest = {path.name: path for path in ROOT.iterdir() if path.is_file() and path.name != "bench.json"}
    made, _ = build_fab_from_files({**rest, **files(*PACKAGES, "simulations", "tests", "docs", ".ci")})
    return zipfile.ZipFile(io.BytesIO(made))


def test_the_bundle_holds_the_apps_packages_and_the_scenarios_and_nothing_else(bundle: zipfile.ZipFile) -> None:
    want = {path for path in files(*PACKAGES) if path.endswith(".py")}
    want |= {path for path in files("configs") if path.endswith(".yaml")}
    assert {"server/app.py", "client/app.py", "configs/movielens.yaml"} < want
    assert set(bundle.namelist()) == want | {"pyproject.toml", ".info/CONTENT"}
    assert not [name for name in bundle.namelist() if "test" in name]


def test_the_bundle_is_far_below_flowers_limit(bundle: zipfile.ZipFile) -> None:
    assert sum(info.compress_size for info in bundle.infolist()) < 2**20  # of 10 MiB


def test_what_is_packed_is_what_lies_on_disk(bundle: zipfile.ZipFile) -> None:
    for name in set(bundle.namelist()) - {"pyproject.toml", ".info/CONTENT"}:
        assert bundle.read(name) == (ROOT / name).read_bytes(), name


@pytest.mark.parametrize(("component", "kind"), [("serverapp", "ServerApp"), ("clientapp", "ClientApp")])
def test_an_app_is_a_plain_assignment(component: str, kind: str) -> None:
    module, _, name = APP["components"][component].partition(":")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    found = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name == "app"]
    assert [ast.unparse(n.value) for n in found] == [f"{kind}()"]


def test_flower_finds_nothing_wrong_with_the_project() -> None:
    assert validate_config(PROJECT, project_dir=ROOT) == (True, [], [])


def test_the_keys_of_the_run_config_that_are_read_are_those_that_are_declared() -> None:
    """Flower refuses a key that is not declared, and a default that is no plain value."""
    read = {key for path in files("client", "server") if path.endswith(".py") for key in run_config_keys((ROOT / path).read_text())}
    assert read == set(flatten_dict(APP["config"])) == {
        "scenario", "overrides", "out", "from", "noise", "nodes", "patience", "deadline", "quorum"
    }  # fmt: skip


def run_config_keys(source: str) -> set[str]:
    """What a file looks up in a run config by name, as ``x["key"]`` or ``x.get("key")``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript):
            of, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
            of, key = node.func.value, node.args[0]
        else:
            continue
        if ast.unparse(of).endswith("run_config") and isinstance(key, ast.Constant):
            found.add(str(key.value))
    return found


def test_each_way_to_look_up_a_key_is_noticed() -> None:
    assert run_config_keys("a = run_config['x']; b = c.run_config.get('y', 0); d = e['z']") == {"x", "y"}
