"""The runs of a study: side by side in processes of their own, each in the folder of its hash, none of them twice."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from configs.errors import InputError
from configs.scenario import Scenario
from simulations import folders

MEMORY = 6 << 30  # bytes that a run may take with the embedded model
Done = Callable[[str, int, int], None]  # (what is done, how many are, of how many)


def run(scenarios: Mapping[str, Scenario], folder: Path, jobs: int = 0, done: Done = lambda _what, _at, _of: None) -> dict[str, Path]:
    """Run or resume each scenario in ``folder/<hash>``; returns where each is. What is finished is left as it is.

    ``jobs``: so many at a time; 0: one for each CPU, as memory allows. One at a time runs in this process. Of several, one that fails
    stops no other, and is raised at the end.
    """
    places = {key: folder / key for key in scenarios}
    for key, scenario in scenarios.items():
        folders.refuse(scenario, places[key])
    left = [key for key in scenarios if not finished(places[key])]
    jobs = min(jobs or usual_jobs(), len(left))
    at = len(scenarios) - len(left)
    if jobs <= 1:
        for key in left:
            _one(scenarios[key], places[key])
            done(key, at := at + 1, len(scenarios))
        return places
    threads, failed = max(1, (os.cpu_count() or 1) // jobs), []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin) as pool:
        narrow = {key: replace(scenarios[key], engine=replace(scenarios[key].engine, threads=threads)) for key in left}
        waiting = {pool.submit(_one, scenario, places[key]): key for key, scenario in narrow.items()}
        for future in as_completed(waiting):
            if error := future.exception():
                failed.append((waiting[future], error))
                continue
            done(waiting[future], at := at + 1, len(scenarios))
    for key, error in failed:
        if not isinstance(error, InputError):
            raise error
        raise InputError(f"{places[key]}: {error}; {at} of {len(scenarios)} runs are done and stay")
    return places


def finished(place: Path) -> bool:
    """Whether a run has come to its end."""
    return (place / "summary.json").is_file()


def usual_jobs() -> int:
    """One for each CPU, as long as each has the memory that a small model takes."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, free // MEMORY))


def _one(scenario: Scenario, place: Path) -> None:
    from simulations.run import run as run_one

    run_one(scenario, place)


def _begin() -> None:
    """Each process as quiet as the command line's own."""
    from simulations.__main__ import quiet

    quiet()
