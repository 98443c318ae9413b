"""``python -m simulations live`` and ``due``."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import InputError
from configs.scenario import Scenario, label, load
from simulations import folders, usage

LIFE = Annotated[str, typer.Argument(help="A name in configs/ or a YAML file, with life.periods.", metavar="[SCENARIO]")]


def live(
    scenario: LIFE = "life",
    overrides: usage.OVERRIDES = None,
    out: Annotated[Path | None, typer.Option(help="The life's folder; by default lives/<name>-<hash>.")] = None,
    keep: Annotated[str, typer.Option(help="Compare ways to keep what was learnt, between commas: a life for each.")] = "",
    seeds: Annotated[int, typer.Option(help="With --keep: under so many seeds, from the scenario's own on.", min=1)] = 1,
) -> None:
    """Live a scenario's periods one after the other: each is a test, then training data, and what is private is kept.

    A life that was stopped goes on where it was: give the same command again.
    """
    from simulations.life import shown, study

    chosen = load(*usage.or_default(scenario, overrides, "life"))
    usage.quiet()
    if keep:
        place = out or Path("lives") / f"study-{label(chosen)}"
        lives = study.lives(chosen, [name.strip() for name in keep.split(",")], seeds, place)
        for one, folder in lives:
            refuse(one, folder)
        found = [(one, _live(one, folder)) for one, folder in lives]
        text = study.write(chosen, [record for _, record in found], place)
        usage.console().print(text, markup=False, highlight=False)
        return
    folder = out or Path("lives") / label(chosen)
    refuse(chosen, folder)
    record = _live(chosen, folder)
    usage.console().print(shown.measures(record))
    usage.console().print(
        f"page: {folder / 'live.html'}\nfigures: {folder / 'live.json'}", markup=False, highlight=False, soft_wrap=True
    )


def due(
    scenario: LIFE,
    overrides: usage.OVERRIDES = None,
    run: Annotated[Path, typer.Option(help="The last period's run, or the folder in which all are.", metavar="FOLDER")] = Path("runs"),
    examples: Annotated[
        int, typer.Option(help="Ask for so many new examples, in the data on this machine; 0: for time alone.", min=0)
    ] = 0,
    users: Annotated[int, typer.Option(help="Of so many users.", min=1)] = 1,
    at: Annotated[str, typer.Option(help="Ask as of this time instead of now.", metavar="DATE")] = "",
) -> None:
    """Say whether a deployment's next period is due: exit code 0 if it is, 1 if not yet.

    The reason goes to the terminal's error output; the words for 'deploy run' of a period that is due are the only output, for a timer.
    """
    from simulations.life import due as dues

    chosen = load(scenario, overrides or [])
    dues.refuse(chosen)
    found = dues.due(chosen, dues.reached(chosen, run), _moment(at), dues.known(chosen, examples), examples, users)
    typer.echo(found.why, err=True)
    if not found.ready:
        raise typer.Exit(1)
    typer.echo(found.words)


def _moment(said: str) -> float:
    """Seconds since 1970 of a date like 2026-03-01 or 2026-03-01T12:00, in UTC unless it says otherwise; now, where it is empty."""
    try:
        found = datetime.fromisoformat(said) if said else datetime.now(UTC)
    except ValueError:
        raise InputError(f"--at must be a date like 2026-03-01 or 2026-03-01T12:00, got '{said}'") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def refuse(scenario: Scenario, folder: Path) -> None:
    """Raise `InputError` for what cannot be lived, before a model is loaded or a file is written."""
    from simulations.life.periods import of_period

    if not scenario.life.periods:
        raise InputError("life.periods is 0: a life needs two and more, such as life.periods=5")
    if scenario.life.period:
        raise InputError("life.period is for a run of one period; 'live' runs them all, so leave it out")
    folders.refuse_folder(scenario, folder)
    folders.refuse(of_period(scenario, 1), folder / "period-0001")


def _live(scenario: Scenario, folder: Path) -> dict:
    from server.report.promise import promise, spent
    from server.rounds import last_round
    from simulations.life import page, periods, record
    from simulations.progress import watch
    from strategies.files import write_text

    life, total = scenario.life, scenario.life.periods * last_round(scenario)
    if (folder / "live.json").exists():
        return record.read(folder)
    try:
        with watch(usage.console(), f"{scenario.name}, {life.keep}", total, periods.done(scenario, folder)) as observe:
            for _ in periods.live(scenario, folder, observe):
                pass
    except KeyboardInterrupt:
        raise usage.Stopped("stopped; go on with the same command") from None
    found = record.write(folder)
    last = periods.of_period(scenario, life.periods)
    said = promise(last, spent(last, periods.place(folder, life.periods)))
    write_text(folder / "live.html", page.render(found, said))
    return found
