"""The shared adapter alone: the private one begins as it is made, which for all kinds but a soft prompt is no change. The baseline."""

from strategies.newcomers.contract import Asked, Way
from strategies.tree import State


def shared() -> Way:
    """Begin with nothing of one's own."""
    return Way("control", lambda start, _released, _profiles: dict(start), _as_sent)


def _as_sent(sent: State, _asked: Asked) -> State:
    return dict(sent)
