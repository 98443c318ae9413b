"""What a life has come to, from its folder: `live.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError
from configs.scenario import Scenario, load, scenario_hash
from server.report.files import read_rounds
from server.report.summary import plain
from simulations.life.periods import AFTER, BEFORE, place
from strategies import lifelong
from strategies.files import write_text
from strategies.lifelong import Scores

Record = dict[str, Any]


def read(folder: Path) -> Record:
    """The record of a life that is over. Raises `InputError` where it is not.

    ``matrix[t - 1][j - 1]`` is the mean over users of the score on period j after training up to period t, ``untrained`` the same
    before any training, ``prequential`` that on all of period t before it is trained on. ``seconds``, ``tokens`` that were trained on,
    ``epsilon`` and ``sat_out`` (how many users' private adapters did not train) are by period.
    """
    scenario = load(folder / "scenario.yaml")
    numbers = range(1, scenario.life.periods + 1)
    begun, ended = ([_read(place(folder, number) / name) for number in numbers] for name in (BEFORE, AFTER))
    for each, number in zip(ended, numbers, strict=True):
        each["tokens"] = sum(row["tokens"] for row in read_rounds(place(folder, number)))
    users = sorted(ended[-1]["scores"])
    a_STU = _matrix([begun[0]["scores"], *(each["scores"] for each in ended)], users)
    return record(scenario, users, a_STU, [each["prequential"] for each in begun], ended)


def record(scenario: Scenario, users: Sequence[str], a_STU: Scores, prequential: Sequence[dict[str, float | None]],
           ended: Sequence[Record]) -> Record:  # fmt: skip
    """A life's record from the scores [T + 1, T, U] of its users."""
    found = {name: (values_U, better) for name, values_U, better in zip(
        lifelong.DEFINITIONS, lifelong.measures(a_STU, False), (False, False, True, True), strict=True)}  # fmt: skip
    together = {name: lifelong.over_users(*each) for name, each in found.items()}
    said = {
        "name": scenario.name,
        "scenario_hash": scenario_hash(scenario),
        "seed": scenario.seed,
        "keep": scenario.life.keep,
        "keep_options": scenario.life.keep_options,
        "periods": scenario.life.periods,
        "users": len(users),
        "metric": "nll",
        "higher_is_better": False,
        "matrix": [lifelong.average(a_TU) for a_TU in a_STU[1:]],
        "untrained": lifelong.average(a_STU[0]),
        "prequential": [lifelong.average(_row([each], list(each)))[0] for each in prequential],
        **{name: each["mean"] for name, each in together.items()},
        "worst_decile": {name: each["worst_decile"] for name, each in together.items()},
        "definitions": lifelong.DEFINITIONS,
        "seconds": [each["seconds"] for each in ended],
        "tokens": [each.get("tokens", 0) for each in ended],
        "epsilon": [each["epsilon"] for each in ended],
        "train": scenario.life.train,
        "sat_out": [each.get("sat_out", 0) for each in ended],
        "by_user": {name: dict(zip(users, values_U.tolist(), strict=True)) for name, (values_U, _) in found.items()},
    }
    return plain(said)


def write(folder: Path) -> Record:
    """Write a life's record into its folder."""
    found = read(folder)
    write_text(folder / "live.json", json.dumps(found, indent=1) + "\n")
    return found


def _read(path: Path) -> Record:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: this life is not over; give the same 'live' command again") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _matrix(rows: Sequence[dict[str, list[float | None]]], users: Sequence[str]) -> Scores:
    return np.array([np.array([row[user] for user in users], np.float64).T for row in rows])


def _row(rows: Sequence[dict[str, float | None]], users: Sequence[str]) -> Scores:
    return np.array([[row[user] for user in users] for row in rows], np.float64)
