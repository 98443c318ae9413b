"""The one error that people see: a sentence that names the field or file and the nearest valid value."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from a person. The command line prints it as one sentence and exits with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"``, or the list of what is known when nothing is close."""
    names = sorted(known)
    found = close(name, names)
    if found:
        return did_you_mean(found)
    return f" (known: {', '.join(names)})" if names else ""


def close(name: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """The known name that is most like this one, or none; capitals do not matter."""
    names = {k.lower(): k for k in known}
    return [names[k] for k in difflib.get_close_matches(name.lower(), names, n=1, cutoff=cutoff)]


def did_you_mean(names: Iterable[str]) -> str:
    """Return ``" (did you mean 'x' or 'y'?)"``; nothing for no name."""
    said = " or ".join(f"'{name}'" for name in names)
    return f" (did you mean {said}?)" if said else ""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """Build the error for a name that no registry holds: ``unknown scheme 'dul' (did you mean 'dual'?)``."""
    return InputError(f"unknown {what} '{name}'{nearest(name, known)}")
