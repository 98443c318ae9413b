"""Wrong settings, each in one sentence: the name as a person writes it, what it must be, what it is, what is near."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from configs.errors import InputError, close, did_you_mean
from configs.plain import hints

RULES: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
YES_NO = "YAML reads yes, no, on and off as true and false: put quotes around them"


def check(tree: Mapping[Any, Any], root: type, prefix: str = "") -> None:
    """Compare a tree of plain values with a dataclass. Raises `InputError` for an unknown name or a wrong type.

    Text that OmegaConf goes on to convert (``"3"`` for a number) is in order, and so is text that holds a ``${reference}``.
    """
    _check(tree, root, root, prefix)


def paths(kind: type, prefix: str = "") -> Iterator[str]:
    """Every name that a dataclass and its groups know, with dots: ``rounds``, ``shared``, ``shared.rank``, ..."""
    for name, hint in hints(kind).items():
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            yield from paths(typing.cast(type, hint), f"{prefix}{name}.")


def unknown_key(name: str, root: type) -> InputError:
    """Say which names are near: the same one in another group, then a similar one beside it, then a similar one anywhere."""
    every = list(paths(root))
    group, _, last = name.rpartition(".")
    beside = {_last(path): path for path in every if path.rpartition(".")[0] == group}
    elsewhere = [path for path in every if _last(path) == last]
    similar = [beside[found] for found in close(last, beside)]
    anywhere = [path for path in every if _last(path) in close(last, map(_last, every), 0.7)]
    known = f" (known: {', '.join(sorted(beside))})" if beside else ""
    return InputError(f"unknown key '{name}'{did_you_mean((elsewhere or similar or anywhere)[:3]) or known}")


def _check(tree: Mapping[Any, Any], kind: type, root: type, prefix: str) -> None:
    known = hints(kind)
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise unknown_key(name, root)
        if not dataclasses.is_dataclass(known[key]):
            _check_value(name, known[key], value)
        elif isinstance(value, Mapping):
            _check(value, typing.cast(type, known[key]), root, f"{name}.")
        else:
            raise _no_group(name, hints(known[key]), value)


def _no_group(name: str, known: Mapping[str, Any], value: object) -> InputError:
    meant = did_you_mean([f"{name}.name={value}"] if "name" in known and isinstance(value, str) else [])
    return InputError(f"{name} must be a group of keys ({', '.join(known)}), got {_said(value)}{meant}")


def _check_value(name: str, hint: Any, value: Any) -> None:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if value == "???":
        raise InputError(f"{name} has no value: '???' stands for one that is missing")
    if origin is Literal and isinstance(value, str) and "${" not in value and value not in inner:
        raise InputError(f"{name} must be {_either(inner)}, got '{value}'{did_you_mean(close(value, inner))}")
    if origin is Literal and not isinstance(value, str):
        raise InputError(f"{name} must be {_either(inner)}, got {_said(value)}")
    if origin is tuple:
        _check_list(name, inner[0], value)
    elif origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{name} must be a group of values like {{name: 0.5}}, got {_said(value)}")
        for key, item in value.items():
            _check_value(f"{name}.{key}", inner[1], item)
    elif origin not in (typing.Union, types.UnionType) and hint in RULES and not _fits(hint, value):
        why = f" ({YES_NO})" if hint is str and isinstance(value, bool) else ""
        raise InputError(f"{name} must be {RULES[hint]}, got {_said(value)}{why}")


def _check_list(name: str, hint: Any, value: Any) -> None:
    if isinstance(value, str) and "${" in value:
        return
    if not isinstance(value, list | tuple):
        meant = did_you_mean([f"{name}=[{value}]"] if isinstance(value, str | int | float) else [])
        raise InputError(f"{name} must be a list, got {_said(value)}{meant}")
    for item in value:
        if not _fits(hint, item):
            why = f" ({YES_NO})" if isinstance(item, bool) else ""
            raise InputError(f"{name} must be a list in which each is {RULES[hint]}, got {_said(item)}{why}")


def _fits(hint: type, value: object) -> bool:
    if isinstance(value, str):
        return hint is str or "${" in value or _converts(hint, value)
    if isinstance(value, bool):
        return hint is bool
    if hint is bool:
        return value in (0, 1)
    return isinstance(value, int) or (hint is not int and isinstance(value, float))


def _converts(hint: type, text: str) -> bool:
    if hint is bool:
        return text.lower() in ("true", "false", "yes", "no", "on", "off", "y", "n")
    try:
        hint(text)
    except ValueError:
        return False
    return True


def _either(values: tuple[Any, ...]) -> str:
    texts = [f"'{value}'" if value else "empty" for value in values]
    return f"{', '.join(texts[:-1])} or {texts[-1]}" if len(texts) > 1 else texts[0]


def _said(value: object) -> str:
    return "nothing" if value is None else repr(value)


def _last(path: str) -> str:
    return path.rpartition(".")[2]
