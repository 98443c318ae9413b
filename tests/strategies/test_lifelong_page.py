"""The page about lives names every way to keep, with its options as they are, and every key of the group."""

import inspect
from dataclasses import fields
from pathlib import Path

from configs.life import Life
from strategies.keeping import KEEPING

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lifelong.md").read_text()


def test_every_way_and_every_option_is_there() -> None:
    rows = {line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `")}
    for name, make in KEEPING.items():
        for option in inspect.signature(make).parameters.values():
            assert f"{option.name} = {option.default:g}" in rows[name], (name, option.name)
    assert set(KEEPING) <= set(rows)
    for field in fields(Life):
        assert f"`life.{field.name}`" in PAGE or f"life.{field.name}=" in PAGE, field.name
