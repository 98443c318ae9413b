"""The page names every editor with its options as they are."""

import inspect

from strategies.editors import EDITORS
from tests.strategies.test_lifelong_page import PAGE


def test_every_editor_and_every_option_is_there() -> None:
    rows = {line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `")}
    for name, make in EDITORS.items():
        for option in inspect.signature(make).parameters.values():
            assert f"`{option.name} = {option.default:g}`" in rows[name], (name, option.name)
