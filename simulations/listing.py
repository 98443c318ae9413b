"""What can be named in a scenario, read from the registries themselves."""

from rich.table import Table

from client.adapters import KINDS
from client.data import SOURCES
from configs.scenario import HERE, load
from strategies.aggregators import AGGREGATORS
from strategies.schemes import SCHEMES


def listing() -> Table:
    """A table of every registered name: what it is for, and its source."""
    table = Table(title="Names that a scenario knows", show_lines=False)
    for column in ("field", "name", "about"):
        table.add_column(column)
    for name, scheme in SCHEMES.items():
        table.add_row("scheme", name, f"{_first_line(scheme)} ({scheme().paper})")
    for name, aggregator in AGGREGATORS.items():
        table.add_row("aggregator", name, f"{_first_line(aggregator)} ({aggregator().paper})")
    table.add_row("aggregator", "flower.<Class>", "Any strategy of flwr.serverapp.strategy, or an import path.")
    for name in (*KINDS, "prompt"):
        table.add_row("private.kind", name, "")
    for name, source in SOURCES.items():
        table.add_row("data.name", name, source.about)
    for path in sorted(HERE.glob("*.yaml")):
        chosen = load(path)
        table.add_row("scenario", path.stem, f"{chosen.data.name}, {chosen.scheme}, {chosen.rounds} rounds")
    return table


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0]
