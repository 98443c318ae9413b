"""The server's side of a secure sum: it passes keys and shares on, adds masked vectors up, and takes the masks off the sum.

The protocol and what it promises are in `client/masking.py`. One function for each exchange, from the state and the parties' answers
to the next state and a message for each party; the last one gives the sum. A party without an answer, or with one that cannot be read,
has dropped out. With fewer parties than the threshold, or fewer shares of a mask than needed, a round gives `TooFewError` and no sum;
with shares that give another secret than was promised, `MaskingError`.

D: numbers of a vector.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from torch import Tensor

from client.masking import (
    MaskingError,
    PartyState,
    Terms,
    Vector,
    advertise,
    dump,
    load,
    mask,
    needed,
    neighbourhood,
    pack,
    pair_mask,
    private_key,
    public_hex,
    public_key,
    reveal,
    seal,
    share,
    stream,
    unpack,
)
from configs.errors import InputError

STEPS = ("keys", "shares", "masked", "reveal")  # the answers of a party, in their order
SHARE = 4 + 48  # bytes: an index, and 32 bytes padded to three blocks

Answers = Mapping[str, bytes]  # party -> its answer
Messages = dict[str, bytes]  # party -> what it gets
Exchange = Callable[[str, Messages], Answers]  # a step's name in `client.masking` and what each party gets -> what came back
T = TypeVar("T")


class TooFewError(MaskingError):
    """Too few parties are left: the round gives nothing."""


@dataclass(frozen=True)
class ServerState:
    """What the server knows of a round."""

    terms: Terms
    keys: dict[str, tuple[str, str]]  # public ones of all that advertised
    seals: dict[str, str] = field(default_factory=dict)  # of all that shared
    kept: tuple[str, ...] = ()  # those in the sum
    total_D: Vector = field(default_factory=lambda: np.zeros(0, np.uint32))  # of masked vectors


def roster(terms: Terms, answers: Answers) -> tuple[ServerState, Messages]:
    """``keys`` to ``roster``: tell each party its neighbours' keys."""
    keys = _accepted(terms, "keys", answers, lambda _, body, __: _keys(body["keys"]))
    _enough(terms, keys)
    names = sorted(keys)
    around = {me: neighbourhood(names, me, terms) for me in names}
    bodies = {me: {"names": names, "keys": {name: keys[name] for name in around[me]}} for me in names}
    return ServerState(terms, keys), {me: pack("roster", terms, me, body) for me, body in bodies.items()}


def relay(state: ServerState, answers: Answers) -> tuple[ServerState, Messages]:
    """``shares`` to ``boxes``: pass the encrypted shares on."""
    around = {me: neighbourhood(state.keys, me, state.terms) for me in state.keys}

    def parse(me: str, body: dict[str, Any], _: bytes) -> tuple[str, dict[str, str]]:
        if set(body["boxes"]) != set(around[me]) - {me}:
            raise MaskingError("shares are not for the neighbours")
        return str(body["seal"]), {str(to): str(box) for to, box in body["boxes"].items()}

    found = _accepted(state.terms, "shares", _of(answers, state.keys), parse)
    _enough(state.terms, found)
    bodies = {me: {name: found[name][1][me] for name in around[me] if name in found and name != me} for me in found}
    messages = {me: pack("boxes", state.terms, me, {"active": sorted(found), "boxes": boxes}) for me, boxes in bodies.items()}
    return replace(state, seals={me: one[0] for me, one in found.items()}), messages


def ask(state: ServerState, answers: Answers) -> tuple[ServerState, Messages]:
    """``masked`` to ``ask``: add the vectors up, and ask for what takes the masks off."""
    found = _accepted(state.terms, "masked", _of(answers, state.seals), lambda _, __, blob: _vector(blob, state.terms.size))
    _enough(state.terms, found)
    total_D = np.zeros(state.terms.size, np.uint32)
    for vector_D in found.values():
        total_D += vector_D
    kept, lost = sorted(found), sorted(set(state.seals) - set(found))
    messages = {me: pack("ask", state.terms, me, {"kept": kept, "lost": lost}) for me in kept}
    return replace(state, kept=tuple(kept), total_D=total_D), messages


def unmask(state: ServerState, answers: Answers) -> Tensor:
    """The sum of the vectors in ``state.kept``, int64 D between -2**31 and 2**31 - 1, out of ``reveal``."""
    terms, size = state.terms, state.terms.size
    shares = _accepted(terms, "reveal", _of(answers, state.kept), lambda _, body, __: _shares(body["shares"]))
    total_D = state.total_D.copy()
    for name in state.kept:
        total_D -= stream(_seed(state, name, shares), size)
    for name in sorted(set(state.seals) - set(state.kept)):
        key = _key(state, name, shares)
        for other in set(neighbourhood(state.keys, name, terms)) & set(state.kept):
            total_D -= pair_mask(key, state.keys[other][1], other, name, size)
    return torch.from_numpy(total_D.view(np.int32).astype(np.int64))


def collect(terms: Terms, keys: Answers, exchange: Exchange) -> tuple[Tensor, tuple[str, ...]]:
    """Go through all steps after `advertise`: the sum, int64 D, and the parties that are in it."""
    state, sent = roster(terms, keys)
    state, sent = relay(state, exchange("share", sent))
    state, sent = ask(state, exchange("mask", sent))
    return unmask(state, exchange("reveal", sent)), state.kept


def secure_sum(
    inputs: Mapping[str, Tensor], threshold: int, degree: int = 0, drop_at: Mapping[str, str] | None = None, limit: int | None = None
) -> Tensor:
    """`sum_here` under terms of its own: the sum alone."""
    terms = Terms(secrets.token_hex(16), len(next(iter(inputs.values()), ())), threshold, degree)
    return sum_here(terms, inputs, drop_at, limit)[0]


def sum_here(
    terms: Terms, inputs: Mapping[str, Tensor], drop_at: Mapping[str, str] | None = None, limit: int | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Run the protocol in this process: the sum of int64 D over the parties that came as far as ``masked``, and those parties.

    ``drop_at`` names the answer in `STEPS` that a party gives no more. Raises `InputError` for another name, and what the steps raise.
    """
    drop_at = drop_at or {}
    if wrong := [f"{party}: {step}" for party, step in drop_at.items() if party not in inputs or step not in STEPS]:
        raise InputError(f"drop_at has no such party or step: {wrong[0]} (steps: {', '.join(STEPS)})")
    states: dict[str, bytes] = {}
    until = {party: STEPS.index(step) for party, step in drop_at.items()}
    moves: dict[str, Callable[[str, bytes], tuple[PartyState, bytes]]] = {
        "advertise": lambda me, _: advertise(terms, me),
        "share": lambda me, said: share(load(states[me]), said),
        "mask": lambda me, said: mask(load(states[me]), said, inputs[me], limit),
        "reveal": lambda me, said: reveal(load(states[me]), said),
    }

    def exchange(step: str, sent: Messages) -> Messages:
        answers, at = {}, list(moves).index(step)
        for party in sent:
            if at < until.get(party, len(STEPS)):
                after, answers[party] = moves[step](party, sent[party])
                states[party] = dump(after)
        return answers

    return collect(terms, exchange("advertise", dict.fromkeys(inputs, b"")), exchange)


def _accepted(terms: Terms, kind: str, answers: Answers, parse: Callable[[str, dict[str, Any], bytes], T]) -> dict[str, T]:
    """Answers that can be read, by party in the order of names."""
    found = {}
    for party in sorted(answers):
        try:
            found[party] = parse(party, *unpack(answers[party], kind, terms, party))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError):
            continue
    return found


def _of(answers: Answers, parties: Iterable[str]) -> Messages:
    return {party: answers[party] for party in parties if party in answers}


def _enough(terms: Terms, parties: Mapping[str, object]) -> None:
    if len(parties) < terms.threshold:
        raise TooFewError(f"{len(parties)} parties are left, and the threshold is {terms.threshold}: the round gives nothing")


def _keys(said: list[str]) -> tuple[str, str]:
    encryption, masks = said
    public_key(encryption)
    public_key(masks)
    return encryption, masks


def _vector(blob: bytes, size: int) -> Vector:
    if len(blob) != 4 * size:
        raise MaskingError(f"a vector has {len(blob)} bytes")
    return np.frombuffer(blob, "<u4")


def _shares(said: dict[str, str]) -> dict[str, bytes]:
    found = {str(name): bytes.fromhex(text) for name, text in said.items()}
    if any(len(one) != SHARE for one in found.values()):
        raise MaskingError("a share has another length")
    return found


def _secret(state: ServerState, name: str, shares: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """Put a party's secret together."""
    holders = [h for h in neighbourhood(state.keys, name, state.terms) if name in shares.get(h, {})]
    count = needed(state.keys, state.terms)
    if len(holders) < count:
        raise TooFewError(f"{len(holders)} shares of {name}'s mask are left, and {count} are needed: the round gives nothing")
    try:
        return combine_shares([shares[h][name] for h in holders[:count]])
    except ValueError as error:
        raise MaskingError(f"shares of {name} give no secret: {error}") from None


def _seed(state: ServerState, name: str, shares: Mapping[str, Mapping[str, bytes]]) -> bytes:
    found = _secret(state, name, shares)
    if seal(found) != state.seals[name]:
        raise MaskingError(f"shares of {name} give another seed")
    return found


def _key(state: ServerState, name: str, shares: Mapping[str, Mapping[str, bytes]]) -> ec.EllipticCurvePrivateKey:
    found = private_key(_secret(state, name, shares))
    if public_hex(found) != state.keys[name][1]:
        raise MaskingError(f"shares of {name} give another key")
    return found
