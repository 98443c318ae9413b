"""What can be named in a scenario, read from the registries themselves."""

import inspect
from collections.abc import Callable, Iterator

from rich.table import Table
from rich.text import Text

from client.adapters import KINDS, PROMPTS
from client.data import SOURCES
from configs.scenario import HERE, load
from server.report.controls import MEANING
from strategies.aggregators import AGGREGATORS, FLOWER
from strategies.base import Aggregator, Scheme, as_it_ended, personal
from strategies.drift import DETECTORS
from strategies.editors import EDITORS
from strategies.keeping import KEEPING
from strategies.migrators import MIGRATORS
from strategies.newcomers import NEWCOMERS
from strategies.schemes import SCHEMES
from strategies.unlearning import WAYS


def listing() -> Table:
    """A table of every registered name: the field it goes into, what it is, where it is from."""
    table = Table(title="Names that a scenario knows", title_justify="left", title_style="", header_style="bold", box=None)
    for column in ("field", "name", "about"):
        table.add_column(column, no_wrap=column != "about")
    last = ""
    for field, name, about in entries():
        if last and field != last:
            table.add_section()
        table.add_row(field if field != last else "", Text(name), Text(about))
        last = field
    return table


def entries() -> Iterator[tuple[str, str, str]]:
    """Every name as (field of the scenario, name, one line about it)."""
    for path in sorted(HERE.glob("*.yaml")):
        chosen = load(path)
        yield "scenario", path.stem, f"{chosen.data.name}, {chosen.scheme}, {chosen.aggregator}, {chosen.rounds} rounds"
    for name, scheme in SCHEMES.items():
        yield "scheme", name, _with(first_line(scheme), scheme().paper) + _options("scheme_options", scheme)
    yield "scheme", "<module>.<function>", "a function of your own by its import path: docs/strategies.md"
    for name, aggregator in AGGREGATORS.items():
        about = f"{_with(first_line(aggregator), aggregator().paper)}; {', '.join(flags(aggregator()))}"
        yield "aggregator", name, about + _options("aggregator_options", aggregator)
    yield "aggregator", f"{FLOWER}<Class>", f"a strategy of flwr.serverapp.strategy, e.g. {FLOWER}FedAdam, or an import path"
    yield "aggregator", "<module>.<function>", "a function of your own by its import path: docs/strategies.md"
    for name, kind in KINDS.items():
        yield "private.kind", name, first_line(kind.init)
    for name, prompt in PROMPTS.items():
        yield "private.kind", name, first_line(prompt)
    for name, migrator in MIGRATORS.items():
        said = [
            flag for flag in ("same_shapes", "same_tokenizer", "uses_data", "trains", "texts", "exact") if getattr(migrator(), flag)
        ]
        yield (
            "migrate --with",
            name,
            f"{_with(first_line(migrator), migrator().paper)}; {', '.join(said)}" + _options("--option", migrator),
        )
    for name, keeping in KEEPING.items():
        yield "life.keep", name, _with(first_line(keeping), keeping().paper) + _options("life.keep_options", keeping)
    for name, detector in DETECTORS.items():
        about = _with((detector.__doc__ or "").partition("\n")[0].removesuffix("."), detector().paper)
        yield "life.detector", name, about + _options("life.detector_options", detector)
    for name, editor in EDITORS.items():
        yield "edit --with", name, _with(first_line(editor), editor().paper) + _options("--option", editor)
    for name, way in NEWCOMERS.items():
        yield "newcomer --ways", name, _with(first_line(way), way().paper) + _options("NAME:OPTION=NUMBER", way)
    for name, way in WAYS.items():
        yield "forget --with", name, _with(first_line(way), way().paper) + _options("--option", way)
    for name, source in SOURCES.items():
        yield "data.name", name, source.about
    for name, meaning in MEANING.items():
        yield "controls", name, meaning


def flags(aggregator: Aggregator) -> list[str]:
    """What an aggregator says of itself, in words: what is trained, then its capabilities."""
    names = ("linear", "exact", "invariant", "individual", "mutates_base", "hetero_rank", "paired", "stateful", "rooted", "controls",
             "pairwise")  # fmt: skip
    carried = [f"{factor.removeprefix('lora_')} by the server" for factor in aggregator.carried]
    exchanges = [f"{aggregator.phases} exchanges"] if aggregator.phases > 1 else []
    return [trains(aggregator), *carried, *exchanges, *(name for name in names if getattr(aggregator, name))]


def trains(aggregator: Aggregator) -> str:
    """Which factors are trained, in odd rounds and then in even ones."""
    turns = [" and ".join(f.removeprefix("lora_") for f in aggregator.factors(number)) for number in (1, 2)]
    return " then ".join(dict.fromkeys(turns))


def turns(scheme: Scheme) -> list[str]:
    """What a scheme does, in words: its adapters, what trains in a round, what trains after the last one."""
    adapters = [f"{block} (a copy)" if block in scheme.twins else block for block in scheme.blocks]
    rounds = ["shared, by its copy" if phase.end is not as_it_ended else " and ".join(phase.moves) for phase in scheme.phases]
    last = "private" if personal(scheme) else ""
    return [", ".join(adapters), ", then ".join(rounds), last]


def _options(field: str, maker: Callable[..., object]) -> str:
    options = ", ".join(f"{p.name}={p.default:g}" for p in inspect.signature(maker).parameters.values())
    return f", {field}: {options}" if options else ""


def first_line(documented: object) -> str:
    """The first line of the file that defines it."""
    return (getattr(inspect.getmodule(documented), "__doc__", "") or "").strip().partition("\n")[0].removesuffix(".")


def _with(about: str, paper: str) -> str:
    return about if paper in about else f"{about} ({paper})"
