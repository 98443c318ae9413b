"""What a scenario names: an entry of a registry, or a function of somebody else's by its import path."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

from configs.errors import InputError, unknown

T = TypeVar("T")


def make(what: str, name: str, options: Mapping[str, float], known: Mapping[str, Callable[..., T]], kind: type[T]) -> T:
    """Look a maker up by name and give it its options; ``package.module.function`` names one that is not registered.

    Raises `InputError` for an unknown name or option.
    """
    maker = known[name] if name in known else _imported(what, name, known, kind)
    takes = inspect.signature(maker).parameters
    for option in options:
        if option not in takes:
            raise unknown(f"option of {name}", option, takes)
    return maker(**options)


def _imported(what: str, path: str, known: Mapping[str, Callable[..., T]], kind: type[T]) -> Callable[..., T]:
    """A function by its import path. Nothing is called that does not say what it returns."""
    module, dot, function = path.rpartition(".")
    if not dot:
        raise unknown(what, path, known)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise InputError(f"{what} '{path}': {error}") from None
    if not inspect.isfunction(found) or inspect.signature(found).return_annotation not in (kind, kind.__name__):
        raise InputError(f"{what} '{path}' must be a function that is annotated with '-> {kind.__name__}'")
    return cast(Callable[..., T], found)
