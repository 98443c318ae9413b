"""Options of aggregators and schemes that lie outside of what they mean."""

from configs.errors import InputError


def within(name: str, value: float, low: float, high: float, group: str = "aggregator_options") -> float:
    """The value. Raises `InputError` unless it lies between ``low`` and ``high``."""
    if not low <= value <= high:
        raise InputError(f"{group}.{name} must be between {low:g} and {high:g}, got {value:g}")
    return value
