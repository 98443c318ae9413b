"""`report.html`: one page that needs nothing else, for someone who was not there.

Everything that comes from data or from a scenario is escaped.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from configs.scenario import to_yaml
from server.report import controls, plots
from server.report.files import Run, Users, read, write_text
from server.report.privacy import section
from server.report.promise import accounts, deployed, promise
from server.report.style import CSS
from server.report.summary import MAIN, summary_of

USERS_SHOWN = 200

_SHARES = {"auc": "AUC", "accuracy": "accuracy", "f1": "macro F1"}
_NONE = "–"


def write_page(directory: str | Path) -> Path:
    """Write `report.html` into the run's folder, whole or not at all, and return its path."""
    return write_text(Path(directory) / "report.html", render(read(directory)))


def render(run: Run) -> str:
    """The page as one string of HTML; the same folder gives the same page."""
    summary = summary_of(run)
    body = "\n".join(
        [
            f'<p class="privacy">{html.escape(promise(run.scenario, summary["epsilon"], deployed(run.directory)))}</p>',
            _headline(run, summary),
            _facts(run, summary),
            _controls(run.users, summary),
            *_figures(run),
            _unseen(summary),
            section(accounts(run.scenario, run.directory), run.scenario),
            _users(run.users),
            f"<details><summary>Scenario</summary><pre>{html.escape(to_yaml(run.scenario))}</pre></details>",
        ]
    )
    return document(run.scenario.name, body)


def document(name: str, body: str) -> str:
    """A whole page around its body, with the style sheet and Plotly inside."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)} · Homing</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{CSS}</style>\n<script>{get_plotlyjs()}</script></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def headline(summary: dict[str, Any], per: str) -> str:
    """The main result in one sentence, for a summary and a unit such as ``nats per choice``.

    It claims a difference only where the 95% interval leaves zero out.
    """
    gain = summary["gains"].get("shared")
    if gain is None and not summary.get("rows", True):
        return "No scores left the nodes: this run does not say who is helped."
    if gain is None:
        return f"This run does not compare {controls.words(MAIN)} with shared."
    return f"On top of the shared adapter, a private one {_verdict(gain, per)}."


def rival(summary: dict[str, Any]) -> str | None:
    """The strongest row that knows nothing of a user's taste, by mean nll; None when the run holds none.

    Standing against a weak one would make any adapter look good.
    """
    held = [name for name in ("user_bias", "majority", "base") if name in summary["gains"]]
    means = {name: summary["rows"][name]["mean"] for name in held}
    return min(held, key=lambda name: math.inf if means[name] is None else means[name], default=None)


def _headline(run: Run, summary: dict[str, Any]) -> str:
    per, table = plots.unit(run.users), summary["rows"]
    lead, other = [], rival(summary)
    if other:
        lead.append(f"Against {controls.words(other)}, shared + private {_verdict(summary['gains'][other], per)}.")
    if "shared" in summary["gains"]:
        count = plots.saved(run.users)[1].size
        rest = count - summary["helped"] - summary["harmed"]
        neither = f" and {rest} neither" if rest else ""
        lead.append(f"Of {count:,} users, {summary['helped']:,} are better off with a private adapter than "
                    f"with shared alone, {summary['harmed']:,} worse off{neither}.")  # fmt: skip
        both = [_number(table[row]["mean"]) for row in (MAIN, "shared")]
        lead.append(f"Their mean nll is {both[0]} with it, {both[1]} without.")
    return f'<h1>{html.escape(headline(summary, per))}</h1>\n<p class="lead">{html.escape(" ".join(lead))}</p>'


def _verdict(gain: dict[str, Any], per: str) -> str:
    """``saves 0.0405 nats per choice (95% interval 0.0338 to 0.0472)``; a gain's negative mean is a saving."""
    mean, (low, high) = gain["mean"], gain["ci95"]
    if mean is None:
        return "cannot be compared: a loss is not finite"
    if low is None:
        return f"{'saves' if mean < 0 else 'costs'} {abs(mean):.4f} {per} (one user, so no interval)"
    if low <= 0 <= high:
        span = f"(95% interval {_signed(-high)} to {_signed(-low)})"
        return f"makes no clear difference: {_signed(-mean)} {per} saved {span}"
    near, far = sorted((abs(low), abs(high)))
    return f"{'saves' if mean < 0 else 'costs'} {abs(mean):.4f} {per} (95% interval {near:.4f} to {far:.4f})"


def _facts(run: Run, summary: dict[str, Any]) -> str:
    scenario, speed = run.scenario, summary["tokens_per_second"]
    facts = [
        ("run", scenario.name),
        ("scenario", summary["scenario_hash"]),
        ("seed", summary["seed"]),
        ("model", scenario.model.name),
        ("data", scenario.data.name),
        ("scheme", scenario.scheme),
        ("aggregator", scenario.aggregator),
        ("rounds", summary["rounds"]),
        ("per user and round", f"{_bytes(summary['bytes_up_per_user_round'])} up, "
                               f"{_bytes(summary['bytes_down_per_user_round'])} down"),
        ("training", f"{speed:,.0f} tokens/s" if speed else _NONE),
        ("releases dropped", summary["dropped"]),
    ]  # fmt: skip
    items = "".join(f"<li>{html.escape(name)} <b>{html.escape(str(value))}</b></li>" for name, value in facts)
    return f'<ul class="facts">{items}</ul>'


def _controls(users: Users, summary: dict[str, Any]) -> str:
    if not summary["rows"]:
        return ""
    shares = [name for name in _SHARES if any(name in row for row in summary["rows"].values())]
    head = ["", "mean nll", "95% interval", "worst tenth", *(_SHARES[name] for name in shares)]
    head += ["saved by shared + private", "p"] if summary["gains"] else []
    lines = []
    for name, row in summary["rows"].items():
        meaning = controls.MEANING.get(name, "")
        label = f"{html.escape(controls.words(name))}<small>{html.escape(meaning)}</small>"
        cells = [label, *_numbers(row, shares), *(_gain(summary["gains"].get(name)) if summary["gains"] else [])]
        lines.append(line(cells, "main" if name == MAIN else ""))
    note = (
        f"nll in {plots.unit(users)} on each user's test split, lower is better; every user counts alike. Intervals "
        "are over users (Student t); worst tenth: mean over the users with the highest nll. Saved: the row's nll minus "
        "that of shared + private, paired over users, positive where shared + private is better; p: Wilcoxon signed "
        "rank."
    )
    return f'<h2>Against every control</h2><p class="note">{note}</p>{wide_table(head, lines)}'


def _figures(run: Run) -> list[str]:
    one = [
        ("Learning curve", _validation_note(run), "learning", plots.learning_curve(run)),
        ("Who is helped", "What the private adapter saves each user on top of the shared one. "
         f"{_key(plots.HELPED, 'helped')} {_key(plots.HARMED, 'harmed')}", "gains", plots.gains_sorted(run)),
        ("Does more data help?", "The same saving against what the user had to learn from.", "examples",
         plots.gain_by_examples(run)),
        ("Spread over users", "Half of the users lie in the box; solid line: median, dashed: mean. A loss that is not "
         "finite is not drawn.", "spread",
         plots.spread(run)),
    ]  # fmt: skip
    two = [
        ("Bytes per round", "What travels, all users together.", "traffic", plots.traffic(run)),
        ("Where the time goes", "The whole run.", "clock", plots.clock(run)),
    ]
    sections = [figure_section(*figure) for figure in one]
    return [*sections, '<div class="pair">' + "".join(f"<div>{figure_section(*figure)}</div>" for figure in two) + "</div>"]


def _validation_note(run: Run) -> str:
    """Early stopping chooses the epoch that looks best on this very split, so the curve flatters what it stopped."""
    stopped = run.scenario.shared_training.early_stopping or run.scenario.private_training.early_stopping
    warning = " Early stopping chose on them, so the curve is flattering; the table above is not." if stopped else ""
    return f"On the users' validation splits.{warning}"


def figure_section(title: str, note: str, name: str, figure: go.Figure | None) -> str:
    """A headed figure with a note above it; nothing where there is none."""
    if figure is None:
        return ""
    plot = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=name,  # fixed, so that the same folder gives the same page
        default_height=f"{figure.layout.height}px",
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<h2>{title}</h2><p class="note">{note}</p><figure aria-label="{title}">{plot}</figure>'


def _unseen(summary: dict[str, Any]) -> str:
    if "unseen" not in summary:
        return ""
    table = summary["unseen"]["rows"]
    shares = [name for name in _SHARES if any(name in row for row in table.values())]
    head = ["", "mean nll", "95% interval", "worst tenth", *(_SHARES[name] for name in shares)]
    lines = [line([html.escape(controls.words(name)), *_numbers(row, shares)]) for name, row in table.items()]
    note = f"{summary['unseen']['users']} users that were never trained on."
    return f'<h2>Unseen users</h2><p class="note">{note}</p>{wide_table(head, lines)}'


def _users(users: Users) -> str:
    rows = list(users.values)
    ranked = [name for name in (MAIN, "shared") if "auc" in users.values.get(name, {})][:1]
    head = ["user", "seen", "train", "test", *(controls.words(name) for name in rows)]
    head += [f"AUC, {controls.words(name)}" for name in ranked]
    lines = []
    for at, user in list(enumerate(users.names))[:USERS_SHOWN]:
        cells = [html.escape(user), "yes" if users.seen[at] else "no", _cell(users.train[at], 0), _cell(users.test[at], 0)]
        cells += [_cell(users.values[name]["nll"][at], 4) for name in rows]
        lines.append(line(cells + [_cell(users.values[name]["auc"][at], 3) for name in ranked]))
    shown = f"The first {USERS_SHOWN} of {len(users.names)} users" if len(users.names) > USERS_SHOWN else "All users"
    return f'<h2>Users</h2><p class="note">{shown}; nll per row.</p><div class="users" tabindex="0">{_bare_table(head, lines)}</div>'


def _numbers(row: dict[str, Any], shares: list[str]) -> list[str]:
    low, high = row["ci95"]
    span = f"{low:.4f} to {high:.4f}" if low is not None else _NONE
    return [
        _number(row["mean"]),
        span,
        _number(row["worst_decile"]),
        *(_number(row[name], 3) if name in row else _NONE for name in shares),
    ]


def _gain(gain: dict[str, Any] | None) -> list[str]:
    if gain is None:
        return [_NONE, _NONE]
    low, high = gain["ci95"]
    sure = low is not None and not low <= 0 <= high
    kind = ("good" if gain["mean"] < 0 else "bad") if sure else ""
    span = f"<small>{_signed(-high)} to {_signed(-low)}</small>" if low is not None else ""
    mean = _signed(-gain["mean"]) if gain["mean"] is not None else "not finite"
    return [f'<span class="{kind}">{mean}</span>{span}', _p(gain["p"])]


def _p(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.2g}" if value >= 0.001 else "&lt;0.001"


def wide_table(head: list[str], lines: list[str]) -> str:
    """A table that scrolls sideways where the window is narrow; `line` makes its lines."""
    return f'<div class="wide">{_bare_table(head, lines)}</div>'


def _bare_table(head: list[str], lines: list[str]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def line(cells: Sequence[str], kind: str = "") -> str:
    """One row of a table; the cells are HTML already."""
    return f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _key(colour: str, word: str) -> str:
    return f'<span style="color:{colour}">■</span> {word}'


def _cell(value: float, digits: int) -> str:
    return _NONE if np.isnan(value) else _number(float(value) if np.isfinite(value) else None, digits)


def _number(value: float | None, digits: int = 4) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+z.4f}".replace("-", "−")


def _bytes(count: float) -> str:
    for scale, word in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:.3g} {word}"
    return f"{count:.0f} bytes"
