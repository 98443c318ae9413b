"""`synthetic.html`: the study on one page that needs nothing else."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from server.report import plots
from server.report.page import document, figure_section, line, wide_table
from simulations.synthetic.suite import AXES, BASE, Found, settings
from simulations.synthetic.table import SEEN, WORDS, cells, curve, heads, names, over, title
from strategies import aggregators
from strategies.files import write_text

FAMILIES = {"exact": "#0072b2", "needs a sum only": "#d55e00", "sees each user": "#009e73"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
NOTE = (
    "Users fit W0 + D_k, of low rank, by gradient descent on the exact loss; the ideal aggregate and the best shared adapter are known "
    "in closed form. Means over seeds. Colours: blue is exact by construction, orange needs only the sum of releases, green sees "
    "each user's."
)
SECTIONS = (("round", "error"), ("round", "excess"), ("skew", "error"), ("skew", "excess"), ("users", "error"), ("users", "excess"),
            ("rank", "error"), ("rank", "excess"))  # fmt: skip


def write(found: Found, verdicts: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the page, and return its path."""
    place = folder / "synthetic.html"
    write_text(place, render(found, verdicts))
    return place


def render(found: Found, verdicts: Sequence[Mapping[str, Any]]) -> str:
    """The page as one string of HTML."""
    body = [
        f'<h1>{html.escape(title(found))}</h1><p class="note">{NOTE}</p>',
        wide_table([*heads()], [line([html.escape(cell) for cell in cells(found, name)]) for name in names(found)]),
        "<h2>What theory says</h2>",
        wide_table(["expectation", "because", "holds", "control fails", "checks"], [line(_said(verdict)) for verdict in verdicts]),
        *(figure_section(f"{m.capitalize()} by {axis}", f"{WORDS[m]}.", f"{m}-{axis}", drawn(found, axis, m)) for axis, m in SECTIONS),
    ]
    return document("synthetic", "\n".join(body))


def drawn(found: Found, axis: str, measure: str) -> go.Figure:
    """A curve per aggregator along an axis, or along the rounds of the base setting. An error is drawn on a scale of decades."""
    figure, counts = go.Figure(), dict.fromkeys(FAMILIES, 0)
    for name in names(found):
        family = _family(name)
        x, y = points(found, name, axis, measure)
        figure.add_trace(
            go.Scatter(
                x=x, y=y, name=name, legendgroup=family, mode="lines+markers",
                line={"color": FAMILIES[family], "dash": DASHES[counts[family] % len(DASHES)]}, marker={"size": 5},
                hovertemplate=f"{html.escape(name)}, {axis} %{{x}}: %{{y:.3g}}<extra></extra>",
            )
        )  # fmt: skip
        counts[family] += 1
    figure.update_xaxes(title_text=axis, type="log" if axis in ("users", "rank") else "linear")
    if axis in ("users", "rank"):
        figure.update_xaxes(tickvals=list(AXES[axis][1]))
    figure.update_yaxes(title_text=measure, type="log" if measure == "error" else "linear")
    if measure == "excess":
        figure.update_yaxes(range=[-0.25, 1.25])
    return plots.styled(figure, 480, legend=True)


def points(found: Found, name: str, axis: str, measure: str) -> tuple[list[float], list[float]]:
    """(x, y) of one curve."""
    if axis == "round":
        y = curve(found[name, BASE], measure)
        return [float(at) for at in range(1, len(y) + 1)], y
    along: Iterable[tuple[float, Any]] = ((at, setting) for (of, at), setting in settings().items() if of == axis)
    x, where = zip(*along, strict=True)
    return list(x), [over(found[name, setting], measure)["mean"] for setting in where]


def _family(name: str) -> str:
    built = aggregators.build(name, {})
    return "exact" if built.exact else "needs a sum only" if built.linear else "sees each user"


def _said(verdict: Mapping[str, Any]) -> list[str]:
    because = f"{html.escape(verdict['reason'])}<small>{html.escape(verdict['source'])}</small>"
    seen = [SEEN[verdict[key]] for key in ("holds", "control")]
    return [html.escape(verdict["name"]), because, *seen, str(verdict["checks"])]
