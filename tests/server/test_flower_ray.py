"""A real ``flwr run`` of this project on Ray, under guarantee E, ends where one fused process ends, and leaves no process behind."""

import json
import math
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from client.private import PrivateStore
from configs.errors import InputError
from simulations import flower_ray, parity
from simulations.flower_ray import Done, belonging, flower_home
from strategies.privacy.ledger import LEDGER, Ledger
from tests.server.flower_world import USERS

SGD = ["optimizer=sgd", "lr=0.3"]
TRAINED = " ".join(f"{block}_training.{said}" for block in ("shared", "private") for said in SGD)
NODES = 3


class Ran(NamedTuple):
    found: parity.Parity
    folder: Path
    during: set[str]  # names of the processes of Flower that were there when the command had ended
    scratch: str  # Ray's folder


@pytest.fixture(scope="module")
def ran(world: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """One run for all tests: it takes as long as Ray takes to start."""
    folder, seen = tmp_path_factory.mktemp("parity"), {}
    real = flower_ray.run

    def watched(app: Path, env: Mapping[str, str], *args: Any) -> Done:
        done = real(app, env, *args)
        seen["names"] = {" ".join(process.cmdline()) for process in belonging(Path(env["FLWR_HOME"]))}
        seen["ray"] = env["RAY_TMPDIR"]
        return done

    overrides = f"{world} users_per_round=5 personalize=1 evaluate_every=0 rounds=2 privacy=example {TRAINED}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower_ray, "run", watched)
        found = parity.compare("movielens", overrides.split(), NODES, folder)
    yield Ran(found, folder, seen["names"], seen["ray"])


def test_flower_on_ray_and_one_fused_process_end_at_the_same_shared_adapter(ran: Ran) -> None:
    assert ran.found.shared.moved > 1e-2
    assert ran.found.shared.share < parity.TOLERANCE["sgd"] == 5e-5


def test_and_every_user_at_the_same_private_adapter(ran: Ran) -> None:
    assert len(ran.found.private) == USERS
    for user, gap in ran.found.private.items():
        assert gap.moved > 1e-2 and gap.share < parity.TOLERANCE["sgd"], user


def test_what_ran_was_the_bundle_and_its_run_lies_in_homings_home(ran: Ran) -> None:
    bundles = list(ran.folder.glob("flwr-*/apps/homing.homing.*/configs/movielens.yaml"))
    assert len(bundles) == 1 and "7 users on 3 nodes" in ran.found.said
    assert {path.name for path in (ran.folder / "home").iterdir()} == {"runs", "nodes"}
    assert (ran.folder / "home" / "runs" / "parity" / "report.html").is_file()


def test_nodes_that_ray_plays_draw_their_noise_from_the_seed_and_book_as_the_fused_process_does(ran: Ran) -> None:
    (there,) = (ran.folder / "home").rglob(LEDGER)
    with Ledger(there) as mine, Ledger(ran.folder / "fused" / LEDGER) as theirs:
        assert mine.histories() == theirs.histories() != {} and mine.runs() == theirs.runs()
    assert json.loads((ran.folder / "home" / "runs" / "parity" / "flower.json").read_text())["simulated"] is True


def test_no_process_of_flowers_or_rays_is_left(ran: Ran) -> None:
    assert any("flower-superlink" in name for name in ran.during)  # the daemon stays after `flwr run`, and was seen
    (home,) = ran.folder.glob("flwr-*")
    assert belonging(home) == set() and not Path(ran.scratch).exists()


def test_a_superlink_and_its_supernodes_end_when_the_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[psutil.Process] = []

    def fails(_app: Path, env: Mapping[str, str], where: list[str], _config: Any) -> Done:
        seen.extend(belonging(Path(env["FLWR_HOME"])))
        assert where == ["here"]
        raise InputError("the run failed")

    monkeypatch.setattr(flower_ray, "_flwr_run", fails)
    with flower_home(tmp_path) as env, pytest.raises(InputError, match="the run failed"):
        flower_ray.deploy(tmp_path, env, [tmp_path / "node0", tmp_path / "node1"], {})
    assert len(seen) >= 3 and not any(process.is_running() for process in seen)


# ---------------------------------------------------------------------- without Flower
def test_a_user_kept_by_two_nodes_or_by_none_is_not_the_same(tmp_path: Path) -> None:
    here, *there = (PrivateStore(tmp_path / name) for name in ("fused", "node0", "node1"))
    start, end = {"x": torch.zeros(2)}, {"x": torch.ones(2)}
    for user, stores in {"u0": there[:1], "u1": there, "u2": []}.items():
        for store in (here, *stores):
            store.save(user, 1, end)
    shares = {user: found.share for user, found in parity._private(["u0", "u1", "u2", "u3"], start, here, there)}
    assert shares == {"u0": 0.0, "u1": math.inf, "u2": math.inf}


CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'], env={})"


def test_a_daemon_and_its_nameless_children_end_when_the_work_fails(tmp_path: Path) -> None:
    started: list[psutil.Process] = []
    popen: subprocess.Popen[bytes] | None = None
    with pytest.raises(RuntimeError, match="the work failed"), flower_home(tmp_path) as env:
        popen = subprocess.Popen([sys.executable, "-c", CHILD], env=env, start_new_session=True)
        daemon, until = psutil.Process(popen.pid), time.monotonic() + 20
        while not daemon.children() and time.monotonic() < until:
            time.sleep(0.05)
        started += [daemon, *daemon.children()]
        assert len(started) == 2 and belonging(Path(env["FLWR_HOME"])) == set(started)
        raise RuntimeError("the work failed")
    assert popen is not None
    popen.wait(1)
    assert not any(process.is_running() for process in started)


def test_a_run_that_fails_is_one_sentence_with_the_end_of_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'nothing'\n")
    with flower_home(tmp_path) as env, pytest.raises(InputError, match=r"flwr run failed: (.|\n)*version"):
        flower_ray.run(tmp_path, env, 2, {})


def test_a_run_config_says_what_was_meant_blanks_and_quotes_included() -> None:
    config = {"overrides": "data.path='/a b/ü\"x\\y' lr=1e-3", "nodes": 3, "rate": 1e-05, "stream": True, "out": ""}
    assert tomllib.loads(flower_ray.toml(config)) == config
