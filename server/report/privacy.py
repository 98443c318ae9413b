"""`show privacy`, and the report's section about it: both guarantees in words and numbers, as their ledgers tell them."""

import html
import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from configs.scenario import Scenario
from server.report.guarantees import SIMULATED, listed, words
from server.report.promise import Account

TWO = "Two guarantees are two numbers about two things: they do not add up to one, and neither stands for the other."


def statements(account: Account, scenario: Scenario | None) -> list[tuple[str, str]]:
    """A ledger as (what it is about, a sentence or two), for people. ``scenario``: of its run; None where it is not known."""
    said = words(account.guarantee, scenario)
    if not account.spent:
        return [("promised", f"{said.title}; nothing is booked yet"), ("unit", said.one)]
    promised = f"{said.sentence(account.worst, account.delta)}." if math.isfinite(account.worst) else "nothing: a step had no noise."
    return [
        ("promised", promised[:1].upper() + promised[1:]),
        ("unit", f"{said.one}; neighbours are {said.neighbours}"),
        ("trusted", f"{said.trust}.{simulated(account)}"),
        ("spent", _spent(account)),
        ("over", _over(account)),
        ("not covered", listed(said.uncovered)),
    ]


def simulated(account: Account) -> str:
    """A warning where noise in a ledger came from a seed."""
    return "" if all(booking.fresh for booking in account.bookings) else f" {SIMULATED} Whoever knows the seed can take it away."


def _spent(account: Account) -> str:
    left = max(account.epsilon - account.worst, 0.0)
    return (
        f"epsilon {account.worst:.3g} of {account.epsilon:g} by the user who spent most, {account.median:.3g} by the median one of "
        f"{len(account.spent)}, at delta {account.delta:g} ({account.accountant}); {left:.3g} left"
    )


def _over(account: Account) -> str:
    runs, most = len(account.bookings), max(account.rounds.values())
    rounds = sum(booking.rounds for booking in account.bookings)
    return f"{_count(runs, 'run')} and {_count(rounds, 'round')}; any one user took part in {most} of them at most"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def words_table(account: Account, scenario: Scenario | None) -> Table:
    """`statements` for the terminal."""
    table = Table(title=Text(f"{_title(account)}, {account.path}"), title_justify="left", title_style="bold", show_header=False,
                  box=None, pad_edge=False)  # fmt: skip
    for name, sentence in statements(account, scenario):
        table.add_row(Text(name), Text(sentence))
    return table


def runs_table(account: Account) -> Table:
    """The runs that a ledger holds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "users", "rounds", "parts", "noise"):
        table.add_column(name, justify="right" if name in ("users", "rounds") else "left")
    for x in account.bookings:
        noise = "the system's" if x.fresh else "from the seed"
        table.add_row(Text(x.run), str(x.users), str(x.rounds), Text(", ".join(x.what)), noise)
    return table


def users_table(account: Account, limit: int) -> Table:
    """What single users have spent, those who spent most first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("user", "epsilon", "rounds"):
        table.add_column(name, justify="left" if name == "user" else "right")
    for user, epsilon in sorted(account.spent.items(), key=lambda item: -item[1])[:limit]:
        table.add_row(Text(user), f"{epsilon:.4g}", str(account.rounds[user]))
    return table


def section(found: Sequence[Account], scenario: Scenario) -> str:
    """The report's section; "" where nothing is promised. The files' places are the reader's own, and are left out."""
    if not found:
        return ""
    body = []
    for account in found:
        items = (f"<p><b>{html.escape(n)}</b>: {html.escape(sentence)}</p>" for n, sentence in statements(account, scenario))
        body += [f"<h3>{_title(account)}</h3>", *items]
    note = f'<p class="note">{TWO}</p>' if len(found) > 1 else ""
    return f"<h2>Privacy, in words</h2>{note}{''.join(body)}"


def _title(account: Account) -> str:
    letter = {"example": "E", "user": "U"}[account.guarantee]
    return f"Guarantee {letter}, {words(account.guarantee, None).title}"
