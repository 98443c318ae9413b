"""The plots of the page: a run in, Plotly figures out. Nothing here reads or writes a file.

On the page a gain is turned so that positive is better: the loss of ``shared`` minus the loss of ``shared + private``.
"""

import functools
import html
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from server.report import controls
from server.report.files import Run, Users, validations
from server.report.summary import MAIN, paired
from strategies import metrics

HELPED, HARMED, EVEN = "#0072b2", "#d55e00", "#8c8c8c"
_GRID = "rgba(128,128,128,0.22)"
_INK = "#5f6670"  # the page's style sheet replaces it by its own ink
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'


def unit(users: Users) -> str:
    """What the nll is per: ``nats per choice`` where a choice was scored, else ``nats per token``."""
    choice = any("accuracy" in values for values in users.values.values())
    return "nats per choice" if choice else "nats per token"


def saved(users: Users) -> tuple[np.ndarray, np.ndarray]:
    """The seen users that have both rows (bool per user), and for these the nats that the private adapter saves."""
    both_U = users.seen & paired(users, MAIN, "shared")
    if not both_U.any():
        return both_U, np.zeros(0)
    new_U, old_U = (users.values[row]["nll"][both_U] for row in (MAIN, "shared"))
    return both_U, -metrics.differences(new_U, old_U)


def learning_curve(run: Run) -> go.Figure | None:
    """Validation nll by round, and AUC beside it where there is one; None without any evaluation."""
    points = validations(run.rounds)
    if not points:
        return None
    names = controls.ordered(name for _, scores in points for name in scores)
    ranked = any("auc" in values for _, scores in points for values in scores.values())
    shown = [("nll", f"nll, {unit(run.users)}")] + ([("auc", "AUC")] if ranked else [])
    figure = make_subplots(rows=1, cols=len(shown), horizontal_spacing=0.09)
    for column, (metric, title) in enumerate(shown, 1):
        for name in names:
            curve = [(at, scores.get(name, {}).get(metric)) for at, scores in points]
            curve = [(at, value) for at, value in curve if value is not None]
            if curve:
                figure.add_trace(_curve(name, curve, legend=column == 1), row=1, col=column)
        figure.update_yaxes(title_text=title, row=1, col=column)
        figure.update_xaxes(title_text="round", dtick=_tick(run), row=1, col=column)
    return styled(figure, 340, legend=True)


def gains_sorted(run: Run) -> go.Figure | None:
    """One bar per user, best first: what the private adapter saves, the worst tenth shaded; None without the pair."""
    both_U, saved_U = saved(run.users)
    if not saved_U.size:
        return None
    order = np.argsort(-saved_U, kind="stable")
    names = [html.escape(run.users.names[at]) for at in np.flatnonzero(both_U)[order]]
    bars = go.Bar(
        x=np.arange(1, saved_U.size + 1),
        y=saved_U[order],
        marker={"color": _signs(saved_U[order]), "line": {"width": 0}},
        customdata=names,
        hovertemplate="user %{customdata}<br>%{y:+.4f}<extra></extra>",
    )
    figure = go.Figure(bars)
    tenth = max(1, saved_U.size // 10)
    worst = metrics.worst_decile(saved_U, higher_is_better=True)
    said = f"{worst:+z.4f}".replace("-", "−") if math.isfinite(worst) else "not finite"
    figure.add_vrect(
        x0=saved_U.size - tenth + 0.5,
        x1=saved_U.size + 0.5,
        fillcolor=HARMED,
        opacity=0.12,
        line_width=0,
        layer="below",
    )
    figure.add_annotation(
        x=saved_U.size + 0.5, y=1, xref="x", yref="paper", xanchor="right", yanchor="bottom", showarrow=False,
        text=f"worst tenth: mean {said}",
    )  # fmt: skip
    figure.update_layout(bargap=0.12 if saved_U.size <= 150 else 0)
    figure.update_xaxes(title_text="users, most helped first", range=[0.4, saved_U.size + 0.6], showgrid=False)
    figure.update_yaxes(title_text=f"saved, {unit(run.users)}", zeroline=True)
    return styled(figure, 320)


def spread(run: Run) -> go.Figure | None:
    """How the nll lies over seen users, a box per row, a diamond at the mean of the worst tenth; None without rows."""
    figure = go.Figure()
    shown: list[str] = []
    for name, values in run.users.values.items():
        values_U = values["nll"][run.users.seen]
        values_U = values_U[np.isfinite(values_U)]
        if values_U.size:
            shown.append(controls.words(name))
            figure.add_trace(_box(name, values_U))
            figure.add_trace(_diamond(name, metrics.worst_decile(values_U), first=len(shown) == 1))
    if not shown:
        return None
    figure.update_yaxes(categoryorder="array", categoryarray=shown[::-1], showgrid=False)
    figure.update_xaxes(title_text=f"nll, {unit(run.users)}")
    return styled(figure, 110 + 44 * len(shown), legend=True)


def traffic(run: Run) -> go.Figure | None:
    """Bytes of all users together per round, up and down; None without rounds."""
    if not run.rounds:
        return None
    scale, word = _bytes_unit(max(max(row["bytes_up"], row["bytes_down"]) for row in run.rounds))
    figure = go.Figure()
    for key, name, colour in (("bytes_up", "up", "#0072b2"), ("bytes_down", "down", "#e69f00")):
        figure.add_trace(
            go.Bar(
                x=[row["round"] for row in run.rounds],
                y=[row[key] / scale for row in run.rounds],
                name=name,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate=f"round %{{x}}, {name}: %{{y:.3g}} {word}<extra></extra>",
            )
        )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_xaxes(title_text="round", dtick=_tick(run), showgrid=False)
    figure.update_yaxes(title_text=f"{word}, all users", rangemode="tozero")
    return styled(figure, 300, legend=True)


def clock(run: Run) -> go.Figure | None:
    """Seconds of each part of the run, the longest on top; None when nothing was timed."""
    parts = sorted(run.timing["seconds"].items(), key=lambda item: item[1])
    if not parts:
        return None
    bars = go.Bar(
        x=[value for _, value in parts],
        y=[html.escape(name) for name, _ in parts],
        orientation="h",
        marker={"color": "#009e73", "line": {"width": 0}},
        text=[_duration(value) for _, value in parts],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.1f} s<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title_text="seconds", range=[0, 1.18 * max(parts[-1][1], 1e-9)])
    figure.update_yaxes(showgrid=False, ticks="outside", ticklen=6, tickcolor="rgba(0,0,0,0)")
    return styled(figure, 300)


def gain_by_examples(run: Run) -> go.Figure | None:
    """What the private adapter saves against how much a user had to learn from; None without the pair."""
    both_U, saved_U = saved(run.users)
    if not saved_U.size:
        return None
    train_U = run.users.train[both_U]
    dots = go.Scatter(
        x=train_U,
        y=saved_U,
        mode="markers",
        marker={"color": _signs(saved_U), "size": 8 if saved_U.size <= 300 else 5, "opacity": 0.75},
        customdata=[html.escape(run.users.names[at]) for at in np.flatnonzero(both_U)],
        hovertemplate="user %{customdata}<br>%{x} examples<br>%{y:+.4f}<extra></extra>",
    )
    figure = go.Figure(dots)
    wide = train_U.min() > 0 and train_U.max() > 10 * train_U.min()
    figure.update_xaxes(title_text="training examples")
    if wide:  # activity has a long tail, and the few heavy users would push everybody else to the edge
        ticks = [step * 10**power for power in range(9) for step in (1, 2, 5)]
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks])
    figure.update_yaxes(title_text=f"saved, {unit(run.users)}", zeroline=True)
    return styled(figure, 320)


def _curve(name: str, curve: list[tuple[int, float]], legend: bool) -> go.Scatter:
    words = html.escape(controls.words(name))
    return go.Scatter(
        x=[at for at, _ in curve],
        y=[value for _, value in curve],
        name=words,
        legendgroup=name,
        showlegend=legend,
        mode="lines+markers",
        line={"color": controls.colour(name), "width": 2.5, "dash": "dot" if name == "base" else "solid"},
        marker={"size": 5 if len(curve) > 3 else 9},
        hovertemplate=f"{words}, round %{{x}}: %{{y:.4f}}<extra></extra>",
    )


def _box(name: str, values_U: np.ndarray) -> go.Box:
    words = html.escape(controls.words(name))
    return go.Box(
        x=values_U.astype(np.float32),
        y=[words] * values_U.size,
        name=words,
        orientation="h",
        boxmean=True,
        boxpoints="outliers",
        marker={"color": controls.colour(name), "size": 4},
        line={"width": 1.5},
        showlegend=False,
    )


def _diamond(name: str, worst: float, first: bool) -> go.Scatter:
    words = html.escape(controls.words(name))
    return go.Scatter(
        x=[worst],
        y=[words],
        name="mean of the worst tenth",
        legendgroup="worst",
        showlegend=first,
        mode="markers",
        marker={"symbol": "diamond", "size": 10, "color": _INK, "line": {"width": 1, "color": "white"}},
        hovertemplate=f"{words}, worst tenth: %{{x:.4f}}<extra></extra>",
    )


def _tick(run: Run) -> int | None:
    """Every round where there are few of them: left alone, Plotly would put ticks between two rounds."""
    return 1 if run.rounds[-1]["round"] <= 12 else None


def _signs(saved_U: np.ndarray) -> list[str]:
    return [HELPED if value > 0 else HARMED if value < 0 else EVEN for value in saved_U]


def _bytes_unit(largest: float) -> tuple[float, str]:
    for scale, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= scale:
            return scale, word
    return 1.0, "bytes"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return "&lt;0.1 s" if seconds < 0.1 else f"{seconds:.{int(seconds < 10)}f} s"
    minutes = math.floor(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def styled(figure: go.Figure, height: int, legend: bool = False) -> go.Figure:
    """The page's look, in place of Plotly's own template."""
    figure.layout.template = _look(legend)
    figure.layout.height, figure.layout.showlegend = height, legend
    return figure


@functools.cache
def _look(legend: bool) -> go.layout.Template:
    """No paper of its own, quiet grids, a legend above where one is wanted. Made once, as Plotly takes long to check it."""
    axis: dict[str, Any] = {
        "gridcolor": _GRID,
        "zerolinecolor": "rgba(128,128,128,0.7)",
        "zerolinewidth": 2,
        "zeroline": False,
        "linecolor": _GRID,
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 10, "font": {"size": 13}},
        "tickfont": {"size": 12},
    }
    layout: dict[str, Any] = {
        "xaxis": axis,
        "yaxis": axis,
        "colorway": ["#0072b2"],
        "autotypenumbers": "strict",  # a name that looks like a number is a name
        "margin": {"l": 8, "r": 12, "t": 36 if legend else 24, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 13, "color": _INK},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "font": {"family": _FONT}},
    }
    return go.layout.Template(layout=layout)
