"""The one error that people see: a sentence that names the field or file and the nearest valid value."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from a person. The command line prints it as one sentence and exits with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"``, or the list of what is known when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(names)})" if names else ""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """Build the error for a name that no registry holds: ``unknown scheme 'dul' (did you mean 'dual'?)``."""
    return InputError(f"unknown {what} '{name}'{nearest(name, known)}")
