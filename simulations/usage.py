"""How the command line is to be used: examples for its help, and a sentence for what cannot be understood."""

from pathlib import Path
from typing import Annotated, Any

import typer
from click.exceptions import ClickException, NoSuchOption
from rich.console import Console
from typer.core import TyperGroup

from configs.checks import paths
from configs.errors import InputError, close, did_you_mean, nearest, unknown
from configs.scenario import HERE, Scenario
from simulations.folders import is_run

WIDE = 1000  # columns where nobody looks: a table that goes to a file is not cut
PROGRAM = "python -m simulations"
DEFAULT = "demo"  # what is run where no scenario is named: it trains under a guarantee
SCENARIO = Annotated[str, typer.Argument(help="A name in configs/, a YAML file, or a run's folder.", metavar="[SCENARIO]")]
OVERRIDES = Annotated[list[str] | None, typer.Argument(help="Settings, e.g. rounds=5 data.users=100", metavar="[KEY=VALUE]...")]


class Stopped(Exception):  # noqa: N818 - a person wanted it
    """A person has stopped a run. The command line prints how to go on and exits with code 130."""


class Commands(TyperGroup):
    """The commands; a word that is none of them is refused with what may have been meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the first word names."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise InputError(
                f"unknown command '{args[0]}'{did_you_mean(meant(args[0], list(self.commands)))}; see: {ctx.command_path} --help"
            )
        return super().resolve_command(ctx, args)


def console() -> Console:
    """Where the command line prints to."""
    found = Console()
    if not found.is_terminal:
        found.width = WIDE
    return found


def say(text: str) -> None:
    """Print as it is: no markup, no colours, no line breaks of our own."""
    console().print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def quiet() -> None:
    """No bars of transformers' own beside ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def or_default(scenario: str, overrides: list[str] | None, default: str) -> tuple[str, list[str]]:
    """The scenario and its settings, where the first word may be a setting already."""
    named = "=" not in scenario or Path(scenario).exists()
    return (scenario, overrides or []) if named else (default, [scenario, *(overrides or [])])


def meant(word: str, commands: list[str]) -> list[str]:
    """What a person may mean by a word where a command should be."""
    if is_scenario(word) or "=" in word:
        return [f"run {word}"]
    if is_run(Path(word)):
        return [f"show {word}", f"resume {word}"]
    return close(word, commands) or [f"run {name}" for name in close(word, (p.stem for p in HERE.glob("*.yaml")), 0.7)]


def is_scenario(word: str) -> bool:
    """Whether a word is a scenario's name or its YAML file."""
    return (HERE / f"{word}.yaml").is_file() or (Path(word).suffix in (".yaml", ".yml") and Path(word).is_file())


def refuse_word(word: str) -> None:
    """Raise `InputError` for a word that is neither a scenario nor a run's folder."""
    if not is_scenario(word):
        runs = (str(found.parent) for found in Path(word).parent.glob("*/scenario.yaml"))
        raise unknown("run or scenario", word, [*runs, *(path.stem for path in HERE.glob("*.yaml"))])


def refuse_plan(word: str) -> None:
    """Raise `InputError` for a word that names no plan."""
    if word != "privacy":
        near = did_you_mean([f"plan privacy {word}"]) if is_scenario(word) or "=" in word else nearest(word, ["privacy"])
        raise InputError(f"there is no plan of '{word}'{near}")


def sentence(error: ClickException) -> str:
    """What is wrong with a command's options or arguments, in one sentence that ends in where to read more."""
    context: Any = getattr(error, "ctx", None)
    command = context.command_path if context else ""
    more = f"; see: {command} --help" if command else ""
    if isinstance(error, NoSuchOption):
        key = error.option_name.lstrip("-").replace("-", "_")
        known = [path for path in paths(Scenario) if path == key or path.endswith(f".{key}")]
        if known and command.rpartition(" ")[2] in ("run", "resume", "show", "plan"):
            return f"unknown option '{error.option_name}': a setting is written without dashes, {known[0]}=VALUE{more}"
        return f"unknown option '{error.option_name}'{did_you_mean(error.possibilities or [])}{more}"
    said = error.format_message().rstrip(".")
    return f"{said[:1].lower()}{said[1:]}{more}"


def examples(*lines: str) -> str:
    """The last lines of a command's help."""
    return "\n\n".join(["[bold]Examples[/bold]" if len(lines) > 1 else "[bold]Example[/bold]", *(f"  {PROGRAM} {x}" for x in lines)])
