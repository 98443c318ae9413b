"""A secure sum is the sum or an error, whoever drops out; one masked vector says nothing; a party tells no two secrets of another."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from client import masking
from client.masking import (
    MODULUS,
    MaskingError,
    PartyState,
    Terms,
    advertise,
    dump,
    load,
    mask,
    neighbourhood,
    pack,
    reveal,
    share,
    unpack,
)
from configs.errors import InputError
from server import unmasking
from server.unmasking import STEPS, ServerState, TooFewError, ask, relay, roster, secure_sum, unmask
from strategies.privacy.discrete import fit, keyed, noised, quantize, restore
from strategies.tree import generator

SIZE = 40
NAMES = tuple(f"p{i}" for i in range(7))
TERMS = Terms("session", SIZE, threshold=4)


def vectors(names: tuple[str, ...] = NAMES, size: int = SIZE, top: int = 10**6) -> dict[str, Tensor]:
    """A vector for each party, of both signs."""
    draw = generator("vectors")
    return {name: torch.randint(-top, top, (size,), generator=draw) for name in names}


def total(inputs: dict[str, Tensor], without: Collection[str] = ()) -> Tensor:
    """The clear sum."""
    return torch.stack([v for k, v in inputs.items() if k not in without]).sum(0)


Round = tuple[dict[str, PartyState], dict[str, bytes], ServerState, dict[str, bytes]]


def upto(step: str, inputs: dict[str, Tensor], lost: tuple[str, ...] = (), terms: Terms = TERMS) -> Round:
    """All parties' states and answers up to a step, and the server's next state and messages; ``lost`` do not send ``masked``."""
    states, answers = {}, {}
    server, sent = ServerState(terms, {}), dict.fromkeys(inputs, b"")
    moves: dict[str, Callable[[str], tuple[PartyState, bytes]]] = {
        "keys": lambda me: advertise(terms, me),
        "shares": lambda me: share(states[me], sent[me]),
        "masked": lambda me: mask(states[me], sent[me], inputs[me]),
    }
    for name in STEPS[: STEPS.index(step) + 1]:
        answers = {}
        for me in sent if name != "masked" else [me for me in sent if me not in lost]:
            states[me], answers[me] = moves[name](me)
        server, sent = roster(terms, answers) if name == "keys" else {"shares": relay, "masked": ask}[name](server, answers)
    return states, answers, server, sent


def forged(message: bytes, terms: Terms = TERMS, **changes: Any) -> bytes:
    """The same message with other fields in its body, and a digest that fits."""
    head = json.loads(message[36 : 36 + int.from_bytes(message[32:36], "little")])
    return pack(head["kind"], terms, head["party"], head["body"] | changes)


# ------------------------------------------------------------------ the sum
@pytest.mark.parametrize("step", ["nobody", *STEPS])
@pytest.mark.parametrize("degree", [0, 4])
def test_the_sum_of_masked_vectors_is_the_clear_sum_of_those_who_sent_one(step: str, degree: int) -> None:
    inputs = vectors()
    gone = {} if step == "nobody" else {"p2": step, "p5": step}
    assert torch.equal(secure_sum(inputs, 4, degree, gone), total(inputs, set() if step == "reveal" else set(gone)))


def test_dropouts_before_every_stage_of_one_round_leave_the_sum_of_the_rest() -> None:
    inputs = vectors(tuple(f"n{i}" for i in range(12)))
    found = secure_sum(inputs, 7, drop_at=dict(zip(("n0", "n3", "n6", "n9"), STEPS, strict=True)))
    assert torch.equal(found, total(inputs, {"n0", "n3", "n6"}))


@pytest.mark.parametrize("step", STEPS)
def test_with_fewer_than_the_threshold_a_round_gives_nothing(step: str) -> None:
    with pytest.raises(TooFewError, match="gives nothing"):
        secure_sum(vectors(), 5, drop_at=dict.fromkeys(NAMES[:3], step))


def test_a_majority_of_shares_is_needed_whatever_the_threshold() -> None:
    with pytest.raises(TooFewError, match=r"3 shares of p\d's mask are left, and 4 are needed"):
        secure_sum(vectors(), 2, drop_at=dict.fromkeys(NAMES[:4], "reveal"))


def test_a_sum_that_could_wrap_is_refused_and_the_largest_that_cannot_is_right() -> None:
    top = (MODULUS // 2 - 1) // len(NAMES)
    for sign in (1, -1):
        inputs = {name: torch.full((3,), sign * top) for name in NAMES}
        assert torch.equal(secure_sum(inputs, 4), total(inputs))
        with pytest.raises(InputError, match="could wrap"):
            secure_sum(inputs | {"p0": torch.full((3,), sign * (top + 1))}, 4)
    with pytest.raises(InputError, match="beyond 5"):
        secure_sum({name: torch.full((3,), 6) for name in NAMES}, 4, limit=5)


@pytest.mark.parametrize(
    "vector", [torch.zeros(SIZE), torch.zeros(SIZE + 1, dtype=torch.int64), torch.zeros(1, SIZE, dtype=torch.int64)]
)
def test_a_vector_of_another_kind_is_refused(vector: Tensor) -> None:
    states, _, _, sent = upto("shares", vectors())
    with pytest.raises(InputError, match="must hold 40 int64"):
        mask(states["p0"], sent["p0"], vector)


def test_bad_settings_are_one_sentence() -> None:
    with pytest.raises(InputError, match="threshold must be at least 2"):
        secure_sum(vectors(), 1)
    with pytest.raises(InputError, match="p0: masks"):
        secure_sum(vectors(), 4, drop_at={"p0": "masks"})


def test_ten_vectors_of_a_hundred_thousand_numbers_are_summed(record_property: Callable[[str, object], None]) -> None:
    inputs = vectors(tuple("abcdefghij"), 100_000)
    found = secure_sum(inputs, 6, drop_at={"c": "masked"})
    record_property("numbers", found.numel())
    assert torch.equal(found, total(inputs, {"c"}))


def test_noised_updates_go_through_whole() -> None:
    grid = fit(1.0, 2000, 7, noise=1.0, honest=5)
    given = {name: {"w": torch.randn(2000, generator=generator(name)) / 50} for name in NAMES}
    sent = {name: noised(quantize(u, grid, keyed(generator(name, 1))), grid, keyed(generator(name, 2))) for name, u in given.items()}
    summed = restore(secure_sum(sent, 5, drop_at={"p1": "masked", "p4": "reveal"}, limit=grid.room), grid, given["p0"])["w"]
    error = summed - torch.stack([u["w"] / max(1.0, float(u["w"].norm())) for name, u in given.items() if name != "p1"]).sum(0)
    assert float(error.std()) == pytest.approx(np.sqrt(6 / 5), rel=0.1)


# ------------------------------------------------------------------ what the server sees
def uniform(message: bytes) -> float:
    """How likely the bytes of a sent vector are under the uniform distribution: p value of chi-square."""
    blob = message[-4 * 20_000 :]
    return float(stats.chisquare(np.bincount(np.frombuffer(blob, np.uint8), minlength=256)).pvalue)


def test_a_masked_vector_looks_uniform_and_the_clear_one_does_not() -> None:
    terms = replace(TERMS, size=20_000)
    inputs = vectors(size=20_000)
    _, answers, _, _ = upto("masked", inputs, terms=terms)
    assert all(uniform(answers[name]) > 1e-4 for name in NAMES)
    assert all(uniform(inputs[name].numpy().astype("<u4").tobytes()) < 1e-9 for name in NAMES)


def test_equal_vectors_have_nothing_in_common_under_their_masks() -> None:
    same = torch.arange(20_000)
    terms, inputs = replace(TERMS, size=20_000), dict.fromkeys(NAMES, same)
    seen = [upto("masked", inputs, terms=terms)[1][name][-80_000:] for _ in range(2) for name in NAMES]
    numbers = [np.frombuffer(blob, "<u4") for blob in seen]
    assert max(int((a == b).sum()) for i, a in enumerate(numbers) for b in numbers[:i]) <= 2


def test_a_vector_stays_masked_when_only_one_of_its_two_masks_is_known() -> None:
    terms, inputs = replace(TERMS, size=20_000), vectors(size=20_000)
    states, answers, _, _ = upto("masked", inputs, terms=terms)
    me = states["p0"]
    masked_D = np.frombuffer(answers["p0"][-80_000:], "<u4")
    own_D = masking.stream(bytes.fromhex(me.seed), 20_000)
    key = masking.private_key(bytes.fromhex(me.private[1]))
    pairs_D = sum(masking.pair_mask(key, me.keys[v][1], "p0", v, 20_000) for v in NAMES[1:])
    assert np.array_equal(masked_D - own_D - pairs_D, inputs["p0"].numpy().astype("<u4")), "the control"
    assert uniform((masked_D - own_D).tobytes()) > 1e-4
    assert uniform((masked_D - pairs_D).tobytes()) > 1e-4


def test_masks_of_a_pair_cancel_and_keys_are_new_each_time() -> None:
    a, b = (masking.ec.generate_private_key(masking.CURVE) for _ in range(2))
    one = masking.pair_mask(a, masking.public_hex(b), "a", "b", 100)
    assert not (one + masking.pair_mask(b, masking.public_hex(a), "b", "a", 100)).any()
    assert advertise(TERMS, "p0")[1] != advertise(TERMS, "p0")[1]


def test_secrets_are_in_no_message_and_in_no_representation() -> None:
    states, answers, _, sent = upto("shares", vectors())
    wire = b"".join([*answers.values(), *sent.values()])
    for state in states.values():
        for secret in (state.seed, *state.private, *(s for pair in state.shares.values() for s in pair)):
            assert secret.encode() not in wire
            assert secret not in repr(state)


# ------------------------------------------------------------------ what a party tells
def test_a_party_never_tells_both_shares_of_another() -> None:
    states, _, _, sent = upto("masked", vectors(), lost=("p6",))
    kept, lost = list(NAMES[:6]), ["p6"]
    asked: list[dict[str, Any]] = [{"lost": ["p6", "p2"]}, {"kept": [*kept, "p6"]}, {"kept": kept[:3], "lost": [*kept[2:], "p6"]}]
    for changes in asked:
        with pytest.raises(MaskingError, match="both shares"):
            reveal(states["p0"], forged(sent["p0"], **changes))
    after, message = reveal(states["p0"], sent["p0"])
    told = unpack(message, "reveal", TERMS, "p0")[0]["shares"]
    both = load(dump(states["p0"])).shares
    assert told == {name: both[name][name in lost] for name in NAMES}
    for again in (sent["p0"], forged(sent["p0"], kept=kept[:5], lost=["p5", "p6"])):
        with pytest.raises(MaskingError, match="'reveal' comes when 'nothing' is next"):
            reveal(after, again)
    assert not after.shares
    assert after.seed == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kept": ["p0", "p1", "p2"], "lost": ["p3", "p4", "p5", "p6"]}, "too few parties"),
        ({"kept": list(NAMES[1:]), "lost": ["p0"]}, "without this one"),
        ({"kept": list(NAMES[:6]), "lost": []}, "each party once"),
        ({"kept": [*NAMES, "p9"]}, "each party once"),
        ({"kept": [*NAMES, "p1"]}, "each party once"),
        ({"kept": 3}, "cannot read"),
    ],
)
def test_a_party_answers_no_question_about_another_set_of_parties(changes: dict[str, Any], said: str) -> None:
    states, _, _, sent = upto("masked", vectors())
    with pytest.raises(MaskingError, match=said):
        reveal(states["p0"], forged(sent["p0"], **changes))


def test_a_party_asks_for_a_majority_of_its_neighbours_in_the_sum_whatever_the_threshold() -> None:
    terms = replace(TERMS, threshold=2)
    states, _, _, sent = upto("masked", vectors(), terms=terms)
    with pytest.raises(MaskingError, match="too few neighbours"):
        reveal(states["p0"], forged(sent["p0"], terms, kept=["p0", "p1", "p2"], lost=list(NAMES[3:])))


def test_a_party_masks_one_vector_only() -> None:
    states, _, _, sent = upto("shares", vectors())
    after, _ = mask(states["p0"], sent["p0"], torch.zeros(SIZE, dtype=torch.int64))
    with pytest.raises(MaskingError, match="'mask' comes when 'reveal' is next"):
        mask(after, sent["p0"], torch.ones(SIZE, dtype=torch.int64))


# ------------------------------------------------------------------ damage and lies
@pytest.mark.parametrize("step", ["keys", "shares", "masked"])
def test_a_damaged_message_is_refused_by_the_party_that_gets_it(step: str) -> None:
    states, _, _, sent = upto(step, vectors())
    move = {"keys": share, "shares": lambda s, m: mask(s, m, torch.zeros(SIZE, dtype=torch.int64)), "masked": reveal}[step]
    message = sent["p0"]
    for at in (0, 33, 50, len(message) - 1):
        with pytest.raises(MaskingError):
            move(states["p0"], message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :])
    for other in (b"", message[:-1], sent["p1"], forged(message, replace(TERMS, session="older"))):
        with pytest.raises(MaskingError):
            move(states["p0"], other)


def test_a_damaged_vector_is_a_dropout_and_never_a_wrong_sum() -> None:
    inputs = vectors()
    states, _, server, sent = upto("shares", inputs)
    answers = {}
    for me in NAMES:
        states[me], answers[me] = mask(states[me], sent[me], inputs[me])
    late, asked = ask(server, answers | {"p3": answers["p3"][:-1] + bytes([answers["p3"][-1] ^ 1])})
    assert torch.equal(unmask(late, {me: reveal(states[me], asked[me])[1] for me in asked}), total(inputs, {"p3"}))


def test_vectors_of_another_round_give_no_sum() -> None:
    states, answers, _, _ = upto("masked", vectors())
    _, _, other, _ = upto("shares", vectors())
    server, asked = ask(other, answers)
    with pytest.raises(MaskingError, match="another seed"):
        unmask(server, {me: reveal(states[me], asked[me])[1] for me in asked})


def test_encrypted_shares_that_were_changed_or_exchanged_are_refused() -> None:
    states, _, _, sent = upto("shares", vectors())
    boxes = unpack(sent["p0"], "boxes", TERMS, "p0")[0]["boxes"]
    zero = torch.zeros(SIZE, dtype=torch.int64)
    flipped = boxes["p1"][:40] + ("A" if boxes["p1"][40] != "A" else "B") + boxes["p1"][41:]
    for wrong in (
        boxes | {"p1": flipped},
        boxes | {"p1": boxes["p2"]},
        {k: v for k, v in boxes.items() if k != "p1"},
        boxes | {"p1": 3},
    ):
        with pytest.raises(MaskingError):
            mask(states["p0"], forged(sent["p0"], boxes=wrong), zero)


def test_encrypted_shares_of_another_session_or_sent_back_are_refused() -> None:
    states, answers, _, sent = upto("shares", vectors())
    boxes = unpack(sent["p0"], "boxes", TERMS, "p0")[0]["boxes"]
    back = unpack(answers["p0"], "shares", TERMS, "p0")[0]["boxes"]["p1"]
    p1 = replace(states["p1"], terms=replace(TERMS, session="older"))
    older = masking._box(p1, p1.keys["p0"][0], "p0", p1.shares["p1"])
    for wrong in (back, older):
        with pytest.raises(MaskingError, match="another party or session"):
            mask(states["p0"], forged(sent["p0"], boxes=boxes | {"p1": wrong}), torch.zeros(SIZE, dtype=torch.int64))


@pytest.mark.parametrize(
    ("active", "said"),
    [
        (["p0", "p1"], "too few parties"),
        ([*NAMES[1:]], "without this one"),
        ([*NAMES, "p1"], "without this one"),
        ([*NAMES, "p9"], "a party that has no keys"),
        (list(NAMES[:3]), "too few neighbours"),
        (list(NAMES[:5]), "not those of the neighbours"),
    ],
)
def test_a_party_masks_nothing_for_another_set_of_parties(active: list[str], said: str) -> None:
    terms = replace(TERMS, threshold=3)
    states, _, _, sent = upto("shares", vectors(), terms=terms)
    with pytest.raises(MaskingError, match=said):
        mask(states["p0"], forged(sent["p0"], terms, active=active), torch.zeros(SIZE, dtype=torch.int64))


@pytest.mark.parametrize("names", [list(NAMES[:3]), [*NAMES[1:], "p9"], [*NAMES, "p0"]])
def test_a_roster_without_this_party_or_with_too_few_is_refused(names: list[str]) -> None:
    states, _, _, sent = upto("keys", vectors())
    with pytest.raises(MaskingError, match="too few parties"):
        share(states["p0"], forged(sent["p0"], names=names))


def test_a_roster_with_exchanged_keys_is_refused_where_a_party_can_tell() -> None:
    states, _, _, sent = upto("keys", vectors())
    keys = unpack(sent["p0"], "roster", TERMS, "p0")[0]["keys"]
    for wrong, said in (
        (keys | {"p0": keys["p1"]}, "other keys for this party"),
        (keys | {"p1": keys["p2"]}, "two parties have one key"),
        ({k: v for k, v in keys.items() if k != "p1"}, "neighbourhood"),
        (keys | {"p1": ["00", "11"]}, "cannot read"),
    ):
        with pytest.raises(MaskingError, match=said):
            share(states["p0"], forged(sent["p0"], keys=wrong))


@pytest.mark.parametrize(("lost", "said"), [((), "another seed"), (("p6",), "p6 give another key")])
def test_shares_that_give_another_secret_give_no_sum(lost: tuple[str, ...], said: str) -> None:
    states, _, server, sent = upto("masked", vectors(), lost)
    answers = {me: reveal(states[me], sent[me])[1] for me in sent}
    shares = unpack(answers["p0"], "reveal", TERMS, "p0")[0]["shares"]
    wrong = {k: v[:8] + f"{int(v[8:10], 16) ^ 1:02x}" + v[10:] if not lost or k in lost else v for k, v in shares.items()}
    with pytest.raises(MaskingError, match=said):
        unmask(server, answers | {"p0": forged(answers["p0"], shares=wrong)})


@pytest.mark.parametrize("body", [{}, {"shares": 3}, {"shares": {"p0": "00"}}, {"shares": {"p0": "zz" * 52}}])
def test_an_answer_that_cannot_be_read_counts_as_none(body: dict[str, Any]) -> None:
    inputs = vectors()
    states, _, server, sent = upto("masked", inputs)
    answers = {me: reveal(states[me], sent[me])[1] for me in sent}
    assert torch.equal(unmask(server, answers | {"p0": pack("reveal", TERMS, "p0", body)}), total(inputs))


def test_strangers_are_not_in_the_sum() -> None:
    inputs = vectors()
    _, answers, _, _ = upto("masked", inputs)
    _, _, server, _ = upto("shares", inputs)
    assert "p9" not in ask(server, answers | {"p9": pack("masked", TERMS, "p9", {}, bytes(4 * SIZE))})[0].kept


# ------------------------------------------------------------------ states, neighbours, numbers
@pytest.mark.parametrize("step", ["keys", "shares", "masked"])
def test_a_state_is_the_same_after_it_was_written_and_read(step: str) -> None:
    states, _, _, _ = upto(step, vectors())
    assert all(load(dump(state)) == state for state in states.values())


@pytest.mark.parametrize("degree", [0, 2, 3, 8, 18, 40])
def test_neighbours_are_as_many_for_all_and_near_both_ways(degree: int) -> None:
    names = [f"n{i}" for i in range(20)]
    terms = Terms("s", 1, 10, degree)
    around = {name: neighbourhood(names, name, terms) for name in names}
    assert {len(found) for found in around.values()} == {min(20, degree + degree % 2 + 1) if degree else 20}
    assert all(a in around[b] for a in names for b in around[a])
    assert all(name in found for name, found in around.items())
    count = len(around["n0"])
    assert count // 2 + 1 <= masking.needed(names, terms) <= count


def test_the_keystream_depends_on_all_of_its_key_and_is_aes() -> None:
    key = bytes(range(32))
    base = masking.stream(key, 4)
    assert all((masking.stream(bytes([*key[:i], key[i] ^ 1, *key[i + 1 :]]), 4) != base).all() for i in range(32))
    zeros = masking.Cipher(masking.algorithms.AES(key), masking.modes.ECB()).encryptor().update(bytes(16))
    assert base.tobytes() == zeros
    assert Counter(hashlib.sha256(masking.stream(bytes([i] * 32), 8).tobytes()).digest() for i in range(50)).most_common(1)[0][1] == 1
    assert unmasking.SHARE == 52
