"""YAML files and ``key=value`` settings as trees, and trees as dataclasses; what is wrong is said in a sentence, with the line."""

import functools
import io
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import InputError
from configs.plain import hints

T = TypeVar("T")


def text(path: Path) -> str:
    """What a file holds. Raises `InputError`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None


def tree(path: Path, said: str) -> DictConfig:
    """The ``key: value`` pairs of a YAML file that holds ``said``. Raises `InputError`."""
    try:
        found: Any = OmegaConf.load(io.StringIO(said))
    except yaml.YAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else ""
        raise InputError(f"{path} is not YAML: {line}{_problem(error)}") from None
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(found, DictConfig):
        raise InputError(f"{path} must hold key: value pairs")
    return found


def override(item: str) -> DictConfig:
    """A setting as a tree of one leaf. Raises `InputError`."""
    key, equals, _ = item.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise InputError(f"override '{item}' must be written key=value, e.g. rounds=5 or shared.rank=4")
    try:
        return OmegaConf.from_dotlist([item])
    except yaml.YAMLError as error:
        raise InputError(f"override '{item}' cannot be read: {_problem(error)}") from None
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"override '{item}' cannot be read: {str(error).splitlines()[0]}") from None


def _problem(error: yaml.YAMLError) -> str:
    said = error.problem or error.context if isinstance(error, yaml.MarkedYAMLError) else None
    return typing.cast(str, said or str(error).splitlines()[0])


def typed(said: Mapping[str, Any], kind: type[T]) -> T:
    """A dataclass of plain values; text becomes a number where a field is one. A value that a group refuses is named with the group.

    Raises `InputError`, or what OmegaConf raises for a wrong type.
    """
    tree: Any = OmegaConf.merge(_schema(kind), said)
    try:
        return typing.cast(T, OmegaConf.to_object(tree))
    except InputError:
        for name in hints(kind):
            _check_group(name, tree[name])
        raise


@functools.cache
def _schema(kind: type) -> DictConfig:
    """Names, types and defaults. Made once, as it takes longer than all the rest; a merge makes a copy."""
    return typing.cast(DictConfig, OmegaConf.structured(kind))


def _check_group(name: str, group: Any) -> None:
    """Check the values of a group by itself: it does not know under which name it stands."""
    try:
        if isinstance(group, DictConfig):
            OmegaConf.to_object(group)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(f"{name}.") else f"{name}.{error}") from None
