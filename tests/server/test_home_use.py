"""What a node was given lets the users that it keeps be served where they are: exported, corrected, forgotten, with no server."""

import json
import shutil
from pathlib import Path

import pytest

from client import given
from client.private import folder_name
from client.store import places
from client.store.keys import make
from server import app as server_app
from tests.server.flower_world import KEPT, RUN, LocalGrid, scenario_of
from tests.simulations.command import call, tree

TENSORS = "adapter_model.safetensors"
SHORT = "rounds=1 personalize=1 evaluate_every=0"


def lived(world: str, home: Path, more: str = "", run: int = RUN, key: str = "") -> Path:
    """Run on three nodes that keep their users in one home; the server's folder."""
    overrides = f"{world} {SHORT} {more}"
    nodes = [{**said, "store-key": key} for said in KEPT] if key else KEPT
    server_app.run(scenario_of(overrides), LocalGrid(overrides, nodes, run_id=run), home / "runs" / str(run))
    return home / "runs" / str(run)


@pytest.mark.parametrize("guarantee", ["off", "example"])
def test_a_model_comes_out_of_a_nodes_home_as_it_would_out_of_one_folder(world: str, home: Path, guarantee: str) -> None:
    make(str(home.parent / "store.key"))
    key = str(home.parent / "store.key")
    run = lived(world, home, f"privacy={guarantee} weights=uniform", key=key)
    kept = home / "nodes" / folder_name(str(RUN))
    refused = call("export", run, "u3", "--out", home / "no")
    assert refused.code == 2 and "give export HOME u3" in refused.err and not (home / "no").exists()
    told = call("export", home, "u3", "--out", home / "a", "--key", key)
    assert told.code == 0, told
    shutil.copytree(kept, run / "private")  # as if all had been on one machine
    (run / "flower.json").unlink()
    assert call("export", run, "u3", "--out", home / "b", "--key", key).code == 0
    assert call("export", run, "u4", "--out", home / "c", "--key", key).code == 0
    exported = [(home / name / TENSORS).read_bytes() for name in "abc"]
    assert exported[0] == exported[1] != exported[2]
    for place in (kept, home / places.USE / kept.name):
        assert call("export", place, "u3", "--out", home / f"of-{place.parent.name}", "--key", key).code == 0
        assert (home / f"of-{place.parent.name}" / TENSORS).read_bytes() == exported[0]
    assert "name it: store-key in the node config, or --key" in call("export", home, "u3", "--out", home / "no").err


def test_a_user_of_a_node_is_corrected_and_forgotten_where_they_are(world: str, home: Path) -> None:
    run = lived(world, home)
    edits = home.parent / "edits.jsonl"
    edits.write_text(json.dumps({"prompt": "w1 w2 w3", "answer": "yea"}) + "\n")
    assert "edit HOME USER" in call("edit", run, "u3", "--file", edits).err
    before = tree(home)
    said = call("edit", home, "u3", "--file", edits)
    assert said.code == 0 and "->" in said.out, said
    now = tree(home)
    assert {name: now[name] for name in before} == before and all("/edits" in name for name in now.keys() - before.keys())
    assert "with 1 edit," in call("export", home, "u3", "--out", home / "a").out
    assert "use/" in call("store", "list", "--home", home).out
    assert "w1 w2 w3" in call("edit", "list", home, "u3").out
    key, copy = home.parent / "store.key", home.parent / "copy.tar"
    for words in (["key", key], ["rekey", key, "--home", home], ["backup", copy, "--home", home, "--key", key]):
        assert call("store", *words).code == 0, words
    assert call("edit", "list", home, "u3").code == 2 and "w1 w2 w3" in call("edit", "list", home, "u3", "--key", key).out
    for left in home.glob("use/*/edits"):
        shutil.rmtree(left)
    assert call("store", "restore", copy, "--home", home, "--key", key).code == 0
    assert "w1 w2 w3" in call("edit", "list", home, "u3", "--key", key).out
    assert call("store", "rekey", "--open", "--home", home, "--key", key).code == 0
    assert call("store", "forget", "u3", "--home", home).code == 0
    assert not list(home.glob("use/*/edits/u3*")) and not list(home.glob("nodes/*/u3*"))
    for command in (["export", home, "u3", "--out", home / "b"], ["edit", home, "u3", "--file", edits]):
        gone = call(*command)
        assert gone.code == 2 and "unknown user 'u3'" in gone.err and "did you mean 'u" in gone.err, gone
    assert call("export", home, "u4", "--out", home / "b").code == 0


def test_what_a_home_lacks_or_has_twice_is_one_sentence(world: str, home: Path) -> None:
    first = lived(world, home)
    kept, found = home / "nodes" / folder_name(first.name), home / places.USE / folder_name(first.name) / given.FILE
    lived(world, home, run=RUN + 1)
    several = call("export", home, "u3", "--out", home / "a")
    assert several.code == 2 and "users of 2 runs" in several.err and kept.name in several.err
    assert call("export", kept, "u3", "--out", home / "a").code == 0
    whole = found.read_bytes()
    for damaged in (whole[:-1], b"", b"x" * 64):
        found.write_bytes(damaged)
        wrong = call("export", kept, "u3", "--out", home / "b")
        assert wrong.code == 2 and "cannot be read" in wrong.err and not (home / "b").exists()
    shutil.rmtree(home / places.USE)
    assert "was given no shared adapter yet" in call("export", home, "u3", "--out", home / "b").err


def test_played_nodes_keep_nothing_and_a_full_disk_ends_no_round(world: str, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    overrides = f"{world} {SHORT}"
    played = [{**said, "noise": "seed"} for said in KEPT]
    server_app.run(scenario_of(overrides), LocalGrid(overrides, played), home / "runs" / "x")
    assert not (home / places.USE).exists()
    (home / places.USE).touch()
    lived(world, home, run=RUN + 1)
    assert "is not kept for use at home" in caplog.text
