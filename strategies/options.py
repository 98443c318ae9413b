"""Options of aggregators that lie outside of what they mean."""

from configs.errors import InputError


def within(name: str, value: float, low: float, high: float) -> float:
    """The value. Raises `InputError` unless it lies between ``low`` and ``high``."""
    if not low <= value <= high:
        raise InputError(f"aggregator_options.{name} must be between {low:g} and {high:g}, got {value:g}")
    return value
