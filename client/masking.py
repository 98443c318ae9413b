"""A party's side of a secure sum: the server learns the sum of the vectors modulo 2**32, and of no single one anything more.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, figure 4 (semi-honest); Bell et al.,
"Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020, for fewer neighbours than all.

    masked_u = x_u + stream(seed_u) + sum_{v > u} stream(key_uv) - sum_{v < u} stream(key_uv)      modulo 2**32

=============  =============================  =====================================================================
step           message from the server        message to the server
=============  =============================  =====================================================================
`advertise`    (the terms)                    ``keys``: two public keys, one to encrypt with and one for masks
`share`        ``roster``: neighbours' keys   ``shares``: of its seed and mask key, encrypted to each neighbour; a seal
`mask`         ``boxes``: shares of others    ``masked``: its vector under masks
`reveal`       ``ask``: who is in, who isn't  ``reveal``: of each neighbour one share: in: seed's, not in: mask key's
=============  =============================  =====================================================================

A party is whoever holds a vector, a user or a node. Each step is a function from a state and a message to the next state and an answer;
`dump` and `load` carry the state from one process to the next. A dump is secret. It must have replaced the one before by the time that
the answer is sent: a state that is used twice gives a vector away.

Against whom: a server that follows the protocol and pools what it sees with some parties, in every neighbourhood fewer than `needed`,
and not so many that they and those who dropped cut the circle of neighbours. Where it lies about who is in the sum, it gets no two
secrets of a party as long as they are fewer than 2 needed - neighbours - 1. A server that makes up parties or exchanges keys is not
covered: that takes a directory of keys that it does not keep. Messages carry a digest, which tells damage and not forgery: transport
authenticates.

From Flower come the shares and the encryption. Its `pseudo_rand_gen` seeds with 32 bits, so that every mask can be guessed: masks here
are the AES-256 keystream in counter mode, with a fresh key for each, under P-256 key agreement.

D: numbers of a vector.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.secure_aggregation.crypto.shamir import create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError

MODULUS = 2**32
CURVE = ec.SECP256R1()
Vector = NDArray[np.uint32]


class MaskingError(ValueError):
    """A message or a state that the protocol refuses. What has been sent stays masked."""


@dataclass(frozen=True)
class Terms:
    """What all parties of a sum have to agree on."""

    session: str  # different for every sum
    size: int  # numbers in a vector
    threshold: int  # vectors in the sum, at least
    degree: int = 0  # neighbours of a party; 0: all others

    def __post_init__(self) -> None:
        if self.threshold < 2:
            raise InputError(f"threshold must be at least 2, since a sum of one vector hides nothing, and is {self.threshold}")


@dataclass(frozen=True)
class PartyState:
    """What a party has to remember between two steps. Bytes are in hexadecimal."""

    terms: Terms
    me: str
    step: str  # the one that comes next
    private: tuple[str, str] = field(repr=False)  # keys: to encrypt with, for masks
    seed: str = field(repr=False)
    names: tuple[str, ...] = ()  # all that advertised keys
    keys: dict[str, tuple[str, str]] = field(default_factory=dict)  # public ones of the neighbourhood
    active: tuple[str, ...] = ()  # all that have shared
    shares: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)  # of the neighbourhood's seeds and mask keys


def advertise(terms: Terms, me: str) -> tuple[PartyState, bytes]:
    """Begin: draw keys and a seed."""
    private = tuple(ec.generate_private_key(CURVE) for _ in range(2))
    secret = tuple(key.private_numbers().private_value.to_bytes(32, "big").hex() for key in private)
    state = PartyState(terms, me, "share", (secret[0], secret[1]), os.urandom(32).hex())
    return state, pack("keys", terms, me, {"keys": [public_hex(key) for key in private]})


def share(state: PartyState, message: bytes) -> tuple[PartyState, bytes]:
    """Deal shares of the seed and of the mask key to the neighbours."""
    with reading(state, "share"):
        body, _ = unpack(message, "roster", state.terms, state.me)
        names, keys = tuple(map(str, body["names"])), {str(k): (str(v[0]), str(v[1])) for k, v in body["keys"].items()}
        _demand(len(set(names)) == len(names) >= state.terms.threshold and state.me in names, "too few parties, or without this one")
        around = neighbourhood(names, state.me, state.terms)
        _demand(set(keys) == set(around), "keys are not those of the neighbourhood")
        _demand(
            keys[state.me] == (public_hex(_private(state, 0)), public_hex(_private(state, 1))), "it names other keys for this party"
        )
        _demand(len({key for pair in keys.values() for key in pair}) == 2 * len(keys), "two parties have one key")
        dealt = [create_shares(bytes.fromhex(s), needed(names, state.terms), len(around)) for s in (state.seed, state.private[1])]
        mine = {to: (a.hex(), b.hex()) for to, a, b in zip(around, *dealt, strict=True)}
        boxes = {to: _box(state, keys[to][0], to, mine[to]) for to in around if to != state.me}
    after = replace(state, step="mask", names=names, keys=keys, shares={state.me: mine[state.me]})
    return after, pack("shares", state.terms, state.me, {"boxes": boxes, "seal": seal(bytes.fromhex(state.seed))})


def mask(state: PartyState, message: bytes, vector_D: Tensor, limit: int | None = None) -> tuple[PartyState, bytes]:
    """Open the others' shares, and send the vector (int64 D) under masks.

    Raises `InputError` for a number beyond ``limit``, by default the equal part of what the modulus holds: then no sum can wrap.
    """
    with reading(state, "mask"):
        body, _ = unpack(message, "boxes", state.terms, state.me)
        active = tuple(map(str, body["active"]))
        _demand(len(set(active)) == len(active) >= state.terms.threshold and state.me in active, "too few parties, or without this one")
        _demand(set(active) <= set(state.names), "it names a party that has no keys")
        others = sorted(set(active) & set(state.keys) - {state.me})
        _demand(len(others) + 1 >= needed(state.names, state.terms), "too few neighbours")
        _demand(set(body["boxes"]) == set(others), "shares are not those of the neighbours")
        shares = {name: _open(state, name, body["boxes"][name]) for name in others}
    masked_D = _checked(vector_D, state.terms.size, (MODULUS // 2 - 1) // len(active) if limit is None else limit)
    masked_D += stream(bytes.fromhex(state.seed), state.terms.size)
    for name in others:
        masked_D += pair_mask(_private(state, 1), state.keys[name][1], state.me, name, state.terms.size)
    after = replace(state, step="reveal", active=active, shares=state.shares | shares)
    return after, pack("masked", state.terms, state.me, {}, masked_D.tobytes())


def reveal(state: PartyState, message: bytes) -> tuple[PartyState, bytes]:
    """Hand out one share of each neighbour, and forget them all."""
    with reading(state, "reveal"):
        body, _ = unpack(message, "ask", state.terms, state.me)
        kept, lost = [tuple(map(str, body[name])) for name in ("kept", "lost")]
        _demand(not set(kept) & set(lost), "it asks for both shares of a party")
        _demand(sorted((*kept, *lost)) == sorted(state.active), "it does not ask for each party once")
        _demand(len(kept) >= state.terms.threshold and state.me in kept, "too few parties, or without this one")
        _demand(len(set(kept) & set(state.keys)) >= needed(state.names, state.terms), "too few neighbours")
    told = {name: pair[name in lost] for name, pair in state.shares.items()}
    after = replace(state, step="", private=("", ""), seed="", shares={})
    return after, pack("reveal", state.terms, state.me, {"shares": told})


def dump(state: PartyState) -> bytes:
    """A state as bytes. Secret."""
    return json.dumps(asdict(state)).encode()


def load(dumped: bytes) -> PartyState:
    """Read what `dump` wrote."""
    said = json.loads(dumped)
    pairs = {name: {k: tuple(v) for k, v in said.pop(name).items()} for name in ("keys", "shares")}
    lists = {name: tuple(said.pop(name)) for name in ("private", "names", "active")}
    return PartyState(terms=Terms(**said.pop("terms")), **pairs, **lists, **said)


# ---------------------------------------------------------------------- what both sides compute
def neighbourhood(names: Iterable[str], me: str, terms: Terms) -> tuple[str, ...]:
    """A party and those beside it on a circle in an order that the session gives, sorted. Whoever is near is near both ways."""
    ring = sorted(names, key=lambda name: hashlib.sha256(f"{terms.session}\0{name}".encode()).digest())
    half, at = math.ceil(terms.degree / 2), ring.index(me)
    if not half or 2 * half + 1 >= len(ring):
        return tuple(sorted(ring))
    return tuple(sorted(ring[(at + i) % len(ring)] for i in range(-half, half + 1)))


def needed(names: Iterable[str], terms: Terms) -> int:
    """Shares that give a secret: a majority of the neighbourhood, so that no two secrets of a party can both be had, or more.

    More where the threshold asks for it: the same part of the neighbourhood as the threshold is of all.
    """
    count = len(tuple(names))
    around = min(count, 2 * math.ceil(terms.degree / 2) + 1) if terms.degree else count
    return max(around // 2 + 1, math.ceil(terms.threshold * around / count))


def stream(key: bytes, size: int) -> Vector:
    """``size`` numbers of the AES-256 keystream. A key is used once, so that the counter may begin at 0."""
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * size)), "<u4")


def pair_mask(private: ec.EllipticCurvePrivateKey, public: str, me: str, other: str, size: int) -> Vector:
    """What ``me`` adds for ``other``, from the private key of either and the public one of the other; theirs is its negative."""
    found = stream(base64.urlsafe_b64decode(generate_shared_key(private, public_key(public))), size)
    return found if me < other else -found


def seal(secret: bytes) -> str:
    """A digest by which a seed that was put together from shares is known to be the right one."""
    return hashlib.sha256(secret).hexdigest()


def public_hex(private: ec.EllipticCurvePrivateKey) -> str:
    """The public key, as it is advertised."""
    return private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex()


def public_key(text: str) -> ec.EllipticCurvePublicKey:
    """Read an advertised key. Raises ValueError for what is no point of the curve."""
    return ec.EllipticCurvePublicKey.from_encoded_point(CURVE, bytes.fromhex(text))


def private_key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a private key."""
    return ec.derive_private_key(int.from_bytes(secret, "big"), CURVE)


# ---------------------------------------------------------------------- messages
def pack(kind: str, terms: Terms, party: str, body: dict[str, Any], blob: bytes = b"") -> bytes:
    """A message from or to a party: digest (32 bytes), length of the head (4, little endian), head (JSON), blob."""
    head = json.dumps({"kind": kind, "session": terms.session, "party": party, "body": body}).encode()
    rest = len(head).to_bytes(4, "little") + head + blob
    return hashlib.sha256(rest).digest() + rest


def unpack(message: bytes, kind: str, terms: Terms, party: str) -> tuple[dict[str, Any], bytes]:
    """(body, blob) of a message. Raises `MaskingError` where it is damaged, or of another kind, session or party."""
    digest, rest = message[:32], message[32:]
    _demand(hashlib.sha256(rest).digest() == digest, "a message is damaged")
    end = 4 + int.from_bytes(rest[:4], "little")
    try:
        head = json.loads(rest[4:end])
        found, body = (head["kind"], head["session"], head["party"]), dict(head["body"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MaskingError(f"a message has no head: {error}") from None
    _demand(found == (kind, terms.session, party), f"a message is {found}, not {(kind, terms.session, party)}")
    return body, rest[end:]


@contextmanager
def reading(state: PartyState, step: str) -> Iterator[None]:
    """Whatever is wrong with a message is a `MaskingError`; so is a step out of its turn."""
    _demand(state.step == step, f"'{step}' comes when '{state.step or 'nothing'}' is next")
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, InvalidToken) as error:
        if isinstance(error, MaskingError):
            raise
        raise MaskingError(f"'{step}' cannot read its message: {error!r}") from None


def _demand(fact: bool, otherwise: str) -> None:
    if not fact:
        raise MaskingError(otherwise)


def _private(state: PartyState, which: int) -> ec.EllipticCurvePrivateKey:
    return private_key(bytes.fromhex(state.private[which]))


def _box(state: PartyState, public: str, to: str, pair: tuple[str, str]) -> str:
    said = {"session": state.terms.session, "from": state.me, "to": to, "shares": pair}
    return encrypt(generate_shared_key(_private(state, 0), public_key(public)), json.dumps(said).encode()).decode()


def _open(state: PartyState, sender: str, box: str) -> tuple[str, str]:
    said = json.loads(decrypt(generate_shared_key(_private(state, 0), public_key(state.keys[sender][0])), box.encode()))
    expected = {"session": state.terms.session, "from": sender, "to": state.me}
    _demand({k: said[k] for k in expected} == expected, f"a share from {sender} is for another party or session")
    return str(said["shares"][0]), str(said["shares"][1])


def _checked(vector_D: Tensor, size: int, limit: int) -> Vector:
    """A vector as numbers modulo 2**32, in memory of its own."""
    if vector_D.dtype != torch.int64 or vector_D.shape != (size,):
        raise InputError(f"a vector must hold {size} int64 numbers, and is {vector_D.dtype} of shape {tuple(vector_D.shape)}")
    if size and not -limit <= int(vector_D.min()) <= int(vector_D.max()) <= limit:
        raise InputError(f"a vector holds a number beyond {limit}, and the sum could wrap")
    return vector_D.numpy().astype("<u4")
