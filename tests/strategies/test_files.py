"""A file is whole or not there."""

from pathlib import Path

import pytest
import torch

from strategies import files
from strategies.files import read_state, write_state, write_text


def test_what_is_written_is_read_back_bitwise(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 2).T, "b": torch.tensor([1, 2]), "c": torch.randn(2).bfloat16(), "d": torch.zeros(0)}
    write_state(tmp_path / "new" / "x.safetensors", state)
    found = read_state(tmp_path / "new" / "x.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[n], state[n]) and found[n].dtype == state[n].dtype for n in state)


def test_tensors_that_share_memory_or_require_gradients_are_written_too(tmp_path: Path) -> None:
    whole = torch.randn(4, 3, requires_grad=True)
    write_state(tmp_path / "x.safetensors", {"row": whole[1], "column": whole[:, 0], "whole": whole})
    assert torch.equal(read_state(tmp_path / "x.safetensors")["column"], whole[:, 0])


def test_writing_again_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_text(tmp_path / "x.txt", text)
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert (tmp_path / "x.txt").read_text() == "two"


@pytest.mark.parametrize("write", [lambda p: write_text(p, "new"), lambda p: write_state(p, {"a": torch.zeros(1)})])
def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def crash(*_: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(OSError, match="killed"):
        write(path)  # type: ignore[operator]
    assert path.read_text() == "old"
