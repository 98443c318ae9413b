"""`compare.html`: a study on one page that needs nothing else. Everything that comes from a study file is escaped."""

import html
import itertools
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from server.report import controls, plots
from server.report.page import document, figure_section, line, wide_table
from server.report.summary import MAIN
from simulations.compare.plan import Plan
from simulations.compare.table import Found, Over, cells, heads, markdown, sweeping, title, to_csv, tuned
from strategies.files import write_text

SHOWN = ("base", "user_bias", "shared", MAIN)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a8fd6", "#8c8c8c")
LETTERS = {"example": "E", "user": "U"}
NO_NOISE = "no noise"
NOTE = (
    "Means over seeds; users count alike, on their own test split. Kept: the share of the first line's gain over the base. Saved: nats "
    "per user against the first line, paired over users, one number for each seed. Per user: each user's differences are averaged over "
    "the seeds; then the median of what a user saves, the share of users who are better off, and Wilcoxon's signed-rank p over users, "
    "corrected by Holm for all lines. Helped and harmed: users, against the shared adapter alone. Unseen users never trained and have "
    "the shared adapter. Bytes are per user and round. Epsilon: the largest of any user's ledger."
)


def write(plan: Plan, lines: Sequence[Found], folder: Path) -> None:
    """Write `compare.md`, `compare.csv` and `compare.html` into the study's folder."""
    for name, text in (("md", markdown(plan, lines)), ("csv", to_csv(plan, lines)), ("html", render(plan, lines))):
        write_text(folder / f"compare.{name}", text)


def render(plan: Plan, lines: Sequence[Found]) -> str:
    """The page as one string of HTML."""
    ran = [*(["settings found", "on the validation split"] * bool(plan.sweep)), "scenarios, by seed"]
    runs = [line([*map(html.escape, (*found["labels"].values(), *_tuned(found), " ".join(found["scenarios"])))]) for found in lines]
    rows = [line([html.escape(cell) for cell in (*found["labels"].values(), *cells(found, lines))]) for found in lines]
    body = [
        f"<h1>{html.escape(title(plan, lines))}</h1>",
        f'<p class="note">{NOTE}</p>{wide_table([*plan.axes, *heads(lines)], rows)}',
        figure_section("Loss by line", "Lower is better; bars reach from the lowest to the highest seed.", "loss", losses(lines)),
        figure_section("What privacy costs", "What is saved over the base, by epsilon; no noise stands at the right.", "epsilon",
                       by_epsilon(lines)),
        f"<h2>What was run</h2>{_sweep(plan, lines)}{wide_table([*plan.axes, *ran], runs)}",
    ]  # fmt: skip
    return document(plan.name, "\n".join(body))


def _sweep(plan: Plan, lines: Sequence[Found]) -> str:
    return f'<p class="note">{html.escape(sweeping(plan, lines))} All trials: sweep.json.</p>' if plan.sweep else ""


def _tuned(found: Found) -> list[str]:
    return [tuned(found), f"{found['tuned'].value:.4f}"] if found["tuned"] else []


def losses(lines: Sequence[Found]) -> go.Figure | None:
    """A dot per line and control, over the seeds' range; None without scores."""
    figure = go.Figure()
    for name in SHOWN:
        found = [(_label(each), each["rows"][name]["nll"]) for each in lines if each["rows"].get(name, {}).get("nll")]
        if found:
            figure.add_trace(
                go.Scatter(
                    x=[over.mean for _, over in found],
                    y=[label for label, _ in found],
                    error_x=_bars([over for _, over in found]),
                    mode="markers",
                    name=html.escape(controls.words(name)),
                    marker={"color": controls.colour(name), "size": 11 if name == MAIN else 8},
                    hovertemplate="%{y}: %{x:.4f}<extra></extra>",
                )
            )
    if not figure.data:
        return None
    figure.update_yaxes(categoryorder="array", categoryarray=[_label(each) for each in lines][::-1])
    figure.update_xaxes(title_text="nll")
    return plots.styled(figure, 120 + 30 * len(lines), legend=True)


def by_epsilon(lines: Sequence[Found]) -> go.Figure | None:
    """Gain over the base against epsilon: a curve per guarantee and combination of all labels but the axis ``privacy``'s.

    It ends at the combination's first line without noise. None where no line has a guarantee.
    """
    known = [each for each in lines if each["gain"] is not None]
    places = sorted({epsilon for each in known for epsilon in each["budgets"].values()})
    figure = go.Figure()
    for (name, points), colour in zip(curves(known).items(), itertools.cycle(COLOURS), strict=False):
        figure.add_trace(
            go.Scatter(
                x=[at for at, _ in points],
                y=[gain.mean for _, gain in points],
                error_y=_bars([gain for _, gain in points]),
                mode="lines+markers",
                name=html.escape(name),
                line={"color": colour},
                hovertemplate="epsilon %{x}: %{y:.4f}<extra></extra>",
            )
        )
    if not figure.data:
        return None
    words = [*(f"{epsilon:.3g}" for epsilon in places), NO_NOISE]
    figure.update_xaxes(title_text="epsilon", type="category", categoryorder="array", categoryarray=words)
    figure.update_yaxes(title_text="saved over the base, nats")
    return plots.styled(figure, 380, legend=True)


def curves(lines: Sequence[Found]) -> dict[str, list[tuple[str, Over]]]:
    """The points (epsilon as a word, gain) of each curve, by its name, the strictest first."""
    groups: dict[tuple[str, ...], list[Found]] = {}
    for each in lines:
        groups.setdefault(tuple(label for axis, label in each["labels"].items() if axis != "privacy"), []).append(each)
    found = {}
    for labels, group in groups.items():
        without = [(NO_NOISE, each["gain"]) for each in group if not each["budgets"]][:1]
        for guarantee in dict.fromkeys(name for each in group for name in each["budgets"]):
            points = sorted((each["budgets"][guarantee], each["gain"]) for each in group if tuple(each["budgets"]) == (guarantee,))
            name = ", ".join([*labels, f"guarantee {LETTERS[guarantee]}"])
            found[name] = [*((f"{epsilon:.3g}", gain) for epsilon, gain in points), *without]
    return {name: points for name, points in found.items() if len(points) > 1}


def _label(found: Found) -> str:
    return html.escape(" / ".join(found["labels"].values()))


def _bars(overs: Sequence[Over]) -> dict[str, object]:
    high, low = [over.high - over.mean for over in overs], [over.mean - over.low for over in overs]
    return {"type": "data", "symmetric": False, "array": high, "arrayminus": low}
