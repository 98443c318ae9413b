"""What may leave a node, declared here and nowhere else, and the one door that every answer of a node goes through.

| | simulated, or without a guarantee | deployed under a guarantee |
|---|---|---|
| the users' names | yes | yes |
| updates of the shared adapter, their weights, how many users | yes | yes: noised, or clipped for a server that noises their sum |
| how many users are within an adaptive bound | yes | yes, where there is one: the server noises it |
| ``counters``: tokens, examples, loss, steps, seconds, load | yes | where ``privacy.waive`` has them |
| under ``privacy.secure``: messages of masks, instead of the three above | yes | yes: the sum that they give is noised |
| ``scores``: the rows of an evaluation, or sums over users of what rides with a training | yes | where ``privacy.waive`` has them |
| what went wrong | yes | no, as a sentence may quote data: it stands in the node's own log |

Guarantee E does not hide how many examples there are. That an answer comes, and when, tells something that no guarantee here covers.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message, MessageType, RecordDict

from client import secure_wire, wire
from client.wire import WireError
from configs.errors import InputError
from configs.scenario import Scenario
from strategies import riding
from strategies.base import Release
from strategies.lora import fits
from strategies.privacy.joint import needed
from strategies.privacy.user_level import BIT
from strategies.tree import State

BESIDE = ("counters", "scores")  # what `privacy.waive` may name
log = logging.getLogger("flwr.homing")


class WithheldError(RuntimeError):
    """An error whose reason stays at home."""


@dataclass(frozen=True)
class Door:
    """What a node lets out in a run."""

    lets: tuple[str, ...] = ()  # of `BESIDE`
    tells: bool = False  # what went wrong
    bit: bool = False  # how many users are within an adaptive bound

    def sums(self) -> tuple[str, ...]:
        """The numbers that go along with a release."""
        counters, scores = wire.METRICS if "counters" in self.lets else (), riding.SUMS if "scores" in self.lets else ()
        return counters + scores + ((BIT,) if self.bit else ())

    def bare(self, releases: Iterable[Release]) -> Iterator[Release]:
        """The releases, without the numbers that stay here."""
        return (replace(r, metrics={n: v for n, v in r.metrics.items() if n in self.sums()}) for r in releases)

    def reply(self, message: Message, content: RecordDict, shared: State) -> Message:
        """The answer to a message. ``shared`` is what the order carried.

        It is written anew from what its reader makes of it, so that nothing can be in it that has no name in `client.wire`.
        Raises `WireError` for what is not declared.
        """
        return Message(DECLARED[message.metadata.message_type](self, content, shared), reply_to=message)

    @contextmanager
    def closed_to_errors(self) -> Iterator[None]:
        """Keep the reason of whatever goes wrong inside in this node's log, where it must not leave."""
        try:
            yield
        except Exception as error:
            if self.tells:
                raise
            log.exception("this node does not answer")
            raise WithheldError(f"a node could not answer ({type(error).__name__}); its own log says why") from None


def door(scenario: Scenario, simulated: bool) -> Door:
    """The door of a node in a run of this scenario."""
    bit = needed(scenario) and scenario.privacy.user.mechanism == "adaptive"
    if simulated or not scenario.privacy.promises:
        return Door(BESIDE, True, bit)
    return Door(scenario.privacy.waive, bit=bit)


def agree(scenario: Scenario, node_config: Mapping[str, Any]) -> None:
    """Raise `InputError` where a node's own config, whose ``epsilon`` is the most that it spends on anyone, forbids a scenario.

    Such a node lets nothing out but under guarantee E, and of what may be waived only what its ``waive`` names (by commas).
    """
    if "epsilon" not in node_config:
        return
    privacy, most = scenario.privacy, [_positive(name, node_config.get(name, 1e-5)) for name in ("epsilon", "delta")]
    if not privacy.promises_examples:
        raise InputError(
            f"privacy.guarantee must be 'example' on this node, whose config has epsilon={most[0]:g}, not '{privacy.guarantee}'"
        )
    for name, limit in zip(("epsilon", "delta"), most, strict=True):
        if getattr(privacy.example, name) > limit:
            raise InputError(f"privacy.example.{name} must be at most {limit:g}, as this node's config says")
    allowed = {name.strip() for name in str(node_config.get("waive", "")).split(",")}
    if extra := sorted(set(privacy.waive) - allowed):
        raise InputError(f"privacy.waive must not name '{extra[0]}': this node's config does not waive it")


def _positive(name: str, value: Any) -> float:
    try:
        if (found := float(value)) > 0:
            return found
    except ValueError:
        pass
    raise InputError(f"{name} in the node config must be above 0, got {value!r}")


def _kept(_door: Door, content: RecordDict, _shared: State) -> RecordDict:
    return wire.encode_kept(wire.decode_kept(content))


def _releases(door: Door, content: RecordDict, shared: State) -> RecordDict:
    found = wire.decode_releases(content, shared)
    if any(r.metrics.keys() - set(door.sums()) for r in found):
        raise WireError("counters and scores stay here that privacy.waive does not name")
    for name, value in ((n, v) for r in found for n, v in r.update.items()):
        if name not in shared or not fits(name, value, shared[name], narrow=True):
            raise WireError(f"'{name}' is not of the shared adapter's names and shapes, and stays here")
    return wire.encode_releases(found, shared)


def _rows(door: Door, content: RecordDict, _shared: State) -> RecordDict:
    if "scores" not in door.lets:
        raise WireError("scores stay here: privacy.waive does not name them")
    return wire.encode_rows(wire.decode_rows(content))


def _masked(_door: Door, content: RecordDict, _shared: State) -> RecordDict:
    return secure_wire.encode_answer(secure_wire.decode_answer(content))


DECLARED: dict[str, Callable[[Door, RecordDict, State], RecordDict]] = {
    MessageType.QUERY: _kept, MessageType.TRAIN: _releases, MessageType.EVALUATE: _rows,
    f"{MessageType.TRAIN}.{secure_wire.ACTION}": _masked, f"{MessageType.QUERY}.{secure_wire.ACTION}": _masked,
}  # fmt: skip
