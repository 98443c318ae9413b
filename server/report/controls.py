"""The rows of every comparison: their order, their names in words, their colours."""

from collections.abc import Iterable

WORDS = {
    "base": "base",
    "majority": "majority",
    "user_bias": "user bias",
    "local_only": "local only",
    "shared": "shared",
    "shared_more_steps": "shared, more steps",
    "shared_private": "shared + private",
    "pooled": "pooled",
    "shuffled": "shuffled",
}

MEANING = {
    "base": "the frozen model, no adapter",
    "majority": "how often this user gives each answer; no model",
    "user_bias": "shared + one constant per user and answer: a habit, no taste",
    "local_only": "an adapter as large, on this user's data alone",
    "shared": "the aggregated adapter, the same for all",
    "shared_more_steps": "shared, trained on for as long as the private ones",
    "shared_private": "the aggregated adapter and the user's own",
    "pooled": "one adapter on everybody's data in one place",
    "shuffled": "shared + somebody else's private adapter",
}

# Okabe and Ito's palette: told apart under the common kinds of colour blindness.
_COLOURS = {
    "base": "#8c8c8c",
    "majority": "#b0a18f",
    "user_bias": "#e69f00",
    "local_only": "#009e73",
    "shared": "#56b4e9",
    "shared_more_steps": "#7a8fd6",
    "shared_private": "#0072b2",
    "pooled": "#cc79a7",
    "shuffled": "#d55e00",
}


def ordered(controls: Iterable[str]) -> list[str]:
    """The known rows in their fixed order, then the others as they came."""
    given = list(dict.fromkeys(controls))
    return [name for name in WORDS if name in given] + [name for name in given if name not in WORDS]


def words(control: str) -> str:
    """The name for people: ``shared_private`` -> ``shared + private``."""
    return WORDS.get(control, control.replace("_", " "))


def colour(control: str) -> str:
    """A fixed colour per row, so that every plot agrees."""
    return _COLOURS.get(control, "#8c8c8c")
