"""`live.html`: a life on one page that needs nothing else."""

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from server.report import plots
from server.report.page import document, figure_section, line, wide_table
from simulations.life.record import Record

WORDS = {"ap": "average over periods, at the end", "forgetting": "forgetting", "bwt": "backward transfer", "fwt": "forward transfer"}
MATRIX = (
    "Mean over users of the loss on the test split of each period (across), after training up to each period (down). Lower is better."
)


def render(found: Record, promise: str) -> str:
    """The page as one string of HTML. ``promise``: its first line, about privacy."""
    numbers = [line([html.escape(cell) for cell in cells]) for cells in lines(found)]
    body = [
        f'<p class="privacy">{html.escape(promise)}</p>',
        f"<h1>{html.escape(title(found))}</h1>",
        wide_table(["", found["metric"], "worst tenth of users", "what it is"], numbers),
        figure_section("What is known when", MATRIX, "matrix", matrix(found)),
        figure_section("First a test, then training data", "Mean loss on all of a period before it is trained on.", "prequential",
                       prequential(found)),
    ]  # fmt: skip
    return document(found["name"], "\n".join(body))


def title(found: Record) -> str:
    """Which life it is."""
    return f"{found['name']}: {found['users']} users over {found['periods']} periods, kept by {found['keep']}"


def lines(found: Record) -> list[tuple[str, str, str, str]]:
    """A line for each measure: its name, its mean over users, that of the worst tenth, its definition."""
    return [
        (words, number(found[name]), number(found["worst_decile"][name]), found["definitions"][name]) for name, words in WORDS.items()
    ]


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def matrix(found: Record) -> go.Figure:
    """The matrix as a heat map, with the untrained model as its first row."""
    rows = [found["untrained"], *found["matrix"]]
    figure = go.Figure(
        go.Heatmap(
            z=rows, x=_names(found["periods"]), y=["untrained", *_names(found["periods"])], colorscale="Viridis_r",
            texttemplate="%{z:.3f}" if len(rows) <= 12 else None, colorbar={"title": found["metric"]},
            hovertemplate="after %{y}, on %{x}: %{z:.4f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title_text="tested on", type="category")
    figure.update_yaxes(title_text="trained up to", type="category", autorange="reversed")
    return plots.styled(figure, 160 + 34 * min(len(rows), 16))


def prequential(found: Record) -> go.Figure:
    """The loss on each period before it is trained on."""
    figure = go.Figure(go.Scatter(x=_names(found["periods"]), y=found["prequential"], mode="lines+markers"))
    figure.update_xaxes(title_text="period", type="category")
    figure.update_yaxes(title_text=found["metric"])
    return plots.styled(figure, 280)


def markdown(rows: Sequence[Any], head: Sequence[str]) -> str:
    """A table's lines as Markdown, of which the first column holds words."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def _names(periods: int) -> list[str]:
    return [str(number) for number in range(1, periods + 1)]
