"""``python -m simulations newcomer RUN_OR_SCENARIO [KEY=VALUE] --ways shared,nearest,hypernet --examples 0,1,5,20,100``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import InputError
from simulations import folders, usage

FILE, PAGE = "newcomer.json", "newcomer.md"
WORDS = Annotated[
    list[str] | None,
    typer.Argument(help="Runs' folders, or a scenario, which is run first; and settings.", metavar="[RUN]... [KEY=VALUE]..."),
]


def newcomer(
    words: WORDS = None,
    ways: Annotated[str, typer.Option(help="Ways to begin, between commas: see 'list'; nearest:candidates=8 sets an option.")] = (
        "shared,mean,nearest,hypernet"
    ),
    examples: Annotated[str, typer.Option(help="How many examples a new user has, between commas.")] = "0,1,5,20,100",
    part: Annotated[str, typer.Option(help="What new users are scored on: test, or validation to choose options on.")] = "test",
    out: Annotated[Path | None, typer.Option(help="The folder to write; by default the run's. Several runs need one.")] = None,
) -> None:
    """Serve users who were never trained on (data.unseen_users) with their first few examples, each way beside every control.

    OUT/newcomer.json holds the figures, OUT/newcomer.md the tables, over all runs that are named.
    """
    from simulations.newcomer import page, plan
    from simulations.newcomer.measure import measure
    from strategies.files import write_text

    given = [word for word in words or () if "=" in word and not Path(word).exists()]
    named = [word for word in words or () if word not in given] or [usage.DEFAULT]
    asked = plan.plan(ways, examples, part)
    places = [plan.place(word, given) for word in named]
    for scenario, folder in places:
        plan.refuse(scenario, folder, asked)
    if out is None and len(places) > 1:
        raise InputError(f"--out is needed with {len(places)} runs: a folder for what they come to together, such as --out newcomers")
    if out is not None and out.is_file():
        raise InputError(f"--out {out} is a file; name a folder")
    usage.quiet()
    found = []
    for word, (scenario, folder) in zip(named, places, strict=True):
        if not folders.is_run(Path(word)):
            from simulations.run import run

            run(scenario, folder)
        found.append(measure(scenario, folder, asked))
    home, text = out or places[0][1], page.render(found)
    write_text(home / FILE, json.dumps({"ways": list(asked.ways), "runs": found}, indent=1) + "\n")
    write_text(home / PAGE, text)
    usage.say(text)
    usage.say(f"figures: {home / FILE}\npage: {home / PAGE}")
