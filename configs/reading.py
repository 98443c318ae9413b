"""YAML files and ``key=value`` settings as trees; what is wrong with one is said in a sentence, with the line."""

import typing
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import InputError


def tree(path: Path) -> DictConfig:
    """What a YAML file of ``key: value`` pairs holds. Raises `InputError`."""
    try:
        found: Any = OmegaConf.load(path)
    except yaml.YAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else ""
        raise InputError(f"{path} is not YAML: {line}{_problem(error)}") from None
    except (OmegaConfBaseException, OSError, ValueError) as error:
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
