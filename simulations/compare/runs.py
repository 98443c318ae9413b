"""The runs of a study: side by side in processes of their own, each in the folder of its hash, none of them twice."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing.context import BaseContext
from pathlib import Path

from configs.errors import InputError
from configs.scenario import Scenario
from simulations import folders, trackers, usage

MEMORY = 6 << 30  # bytes that a run may take with the embedded model
Done = Callable[[str, int, int], None]  # (what is done, how many are, of how many)


def run(scenarios: Mapping[str, Scenario], folder: Path, jobs: int = 0, done: Done = lambda _what, _at, _of: None,
        track: Sequence[str] = ()) -> dict[str, Path]:  # fmt: skip
    """Run or resume each scenario in ``folder/<hash>``; returns where each is. What is finished is left as it is.

    ``jobs``: so many at a time; 0: one for each CPU, as memory allows. One at a time runs in this process. Bad input of one run stops
    no other, and is raised at the end. ``track``: trackers that are told of each run's rounds.
    """
    places = {key: folder / key for key in scenarios}
    for key, scenario in scenarios.items():
        folders.refuse(scenario, places[key])
    left = [key for key in scenarios if not finished(places[key])]
    at, failed = len(scenarios) - len(left), {}
    for key, error in _each({key: scenarios[key] for key in left}, places, min(jobs or usual_jobs(), len(left)), track):
        if error is None:
            done(key, at := at + 1, len(scenarios))
        else:
            failed[key] = error
    for key, error in failed.items():
        raise InputError(f"{places[key]}: {error}; {at} of {len(scenarios)} runs are done and stay") from error
    return places


def finished(place: Path) -> bool:
    """Whether a run has come to its end."""
    return (place / "summary.json").is_file()


def usual_jobs() -> int:
    """One for each CPU, as long as each has the memory that a small model takes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory // MEMORY))


def _each(scenarios: Mapping[str, Scenario], places: Mapping[str, Path], jobs: int,
          track: Sequence[str]) -> Iterator[tuple[str, InputError | None]]:  # fmt: skip
    """Run all, each with its share of the CPUs; yields what is done, in whatever order, with what was wrong with it."""
    if jobs <= 1:
        yield from ((key, _one(scenario, places[key], track)) for key, scenario in scenarios.items())
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, _context(), usage.quiet) as pool:
        narrow = {key: replace(scenario, engine=replace(scenario.engine, threads=threads)) for key, scenario in scenarios.items()}
        waiting = {pool.submit(_one, scenario, places[key], track): key for key, scenario in narrow.items()}
        for future in as_completed(waiting):
            yield waiting[future], future.result()


def _context() -> BaseContext:
    """How processes begin: forked from one that has imported everything, once, where that is safe; else each imports for itself."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simulations.run", "transformers.modeling_utils"])
    return context


def _one(scenario: Scenario, place: Path, track: Sequence[str]) -> InputError | None:
    from simulations.run import run as run_one

    try:
        with trackers.tracker(track, scenario, place) as observe:
            run_one(scenario, place, observe)
    except InputError as error:
        return error
    return None
