"""Reading a user's data out of one release of the shared adapter.

Two attacks by the server, which sees a user's release and knows what it sent, the base model, the public scenario and how many
examples the user has. The user takes one SGD step over all of them.

`choices` knows the catalogue: the prompts that users may have. The release is a sum over the user's examples,

    y = sum_i g(prompt_i, answer_i),    g(prompt, second answer) = -r g(prompt, first answer),  r > 0

as the loss of a choice between two has one slope, whose sign is the answer. The server runs the client on each prompt alone, which
gives g, and solves for what each prompt has in y: 0 where the user has no such example, above 0 the first answer, below 0 the second.
With noise it takes the linear estimate of the least mean square error (ridge regression), which knows the noise; under guarantee E it
clips its columns as the client does.

`tokens` knows nothing but the vocabulary. At the lowest layer the update of a LoRA's A is (B^T G) X^T: its rows lie in the span of the
inputs x_t, and an input there depends on its token alone. A token is in the text if its x lies in that span: the idea of Petrov et al.,
"DAGER: Exact Gradient Inversion for Large Language Models", NeurIPS 2024, arXiv 2405.15586, who have full gradients and find the order
too. It needs no more tokens than the rank, B other than zero (some round after the first), and a layer as Llama's. Each user has one
text, the first that is short enough.

Shape suffixes: P numbers of a release, M prompts of the catalogue, R rank, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from client.base import Base
from client.data.types import Encoded
from configs.scenario import Adapter, Scenario
from simulations.attacks import world as worlds
from simulations.audit.nodes import flat
from simulations.training import World
from strategies.base import Release
from strategies.tree import generator

LR = 0.1
STEP = replace(worlds.STEP, lr=LR)
ROUNDING = 1e-6  # of a float32 release, relative


@dataclass(frozen=True)
class Choices:
    """What the attack by catalogue found, over all users that it was tried on."""

    users: int
    examples: int  # that these have
    catalogue: int  # M
    found: float  # share of true ones among the prompts named; as many are named as the user has examples
    blind: float  # the same for prompts drawn blindly
    answers: float  # share of right answers among the true ones
    usual: float  # the same for each user's more frequent answer


@dataclass(frozen=True)
class Tokens:
    """What the attack by vocabulary found, over all texts that it was tried on."""

    texts: int
    tokens: int  # that are different within a text, over all texts
    found: float  # share of true ones among the tokens named; as many are named as the text has
    blind: float  # the same for tokens drawn blindly


def choices(scenario: Scenario, world: World, epsilons: Sequence[float], users: int) -> list[Choices]:
    """Read the examples of so many users out of a release each, at each epsilon of guarantee E; 0: without noise."""
    plain = worlds.one_round(scenario, "shared_only", worlds.LORA, STEP)
    prompts = worlds.catalogue(world)
    alone = {f"{i:05d}": [e] for i, e in enumerate(prompts.values())}
    columns_PM = torch.stack([_sum(x, 1) for x in _releases(worlds.guarded(plain, 0.0), world, alone)[0]], 1)
    seen_P = columns_PM.abs().sum(1) > 0  # a LoRA's A does not move while its B is zero
    columns_PM = columns_PM[seen_P]
    mine = {user: _answered(x.train) for user, x in islice(world.dataset.users.items(), users)}
    index = {key: at for at, key in enumerate(prompts)}
    truth = [{index[worlds.prompt(e)]: e.label for e in examples} for examples in mine.values()]
    found = []
    for epsilon in epsilons:
        attacked = worlds.guarded(plain, epsilon)
        releases, noise = _releases(attacked, world, mine)
        clip = attacked.privacy.example.shared_clip
        clipped_PM = columns_PM / (columns_PM.norm(dim=0) / clip).clamp(min=1.0) if epsilon else columns_PM
        gram_MM, sums = clipped_PM.T @ clipped_PM, (_sum(x, len(t))[seen_P] for x, t in zip(releases, truth, strict=True))
        solved = [_solved(gram_MM, clipped_PM.T @ y, z * clip, len(t)) for y, z, t in zip(sums, noise, truth, strict=True)]
        found.append(_judged(solved, truth))
    return found


def tokens(scenario: Scenario, world: World, epsilon: float, users: int, rank: int = 32) -> Tokens:
    """Read the tokens of a text of so many users out of a release each; ``epsilon`` of guarantee E, 0: without noise."""
    shared = Adapter(rank=rank, alpha=float(rank), targets=("v_proj",), layers=0)
    attacked = worlds.guarded(worlds.one_round(scenario, "shared_only", shared, STEP), epsilon)
    short = ((user, next((e for e in x.train if len(set(e.ids.tolist())) <= rank), None)) for user, x in world.dataset.users.items())
    texts = dict(islice(((user, [text]) for user, text in short if text), users))
    with worlds.opened(attacked, world, texts) as node:
        releases = worlds.train(node, {n: _stirred(v, n) for n, v in node.split.shared_start().items()})
    inputs_VD, found = _inputs(world.base), []
    for user, (text,) in texts.items():
        slope_RD = next(v for n, v in releases[user].update.items() if ".layers.0." in n and ".lora_A." in n)
        true = set(text.ids.tolist())
        named = _outside(slope_RD, inputs_VD).argsort()[: len(true)].tolist()
        found.append((len(true & set(named)), len(true)))
    right, total = (sum(x) for x in zip(*found, strict=True))
    return Tokens(len(found), total, right / total, sum(n * n for _, n in found) / total / len(inputs_VD))


def _releases(scenario: Scenario, world: World, users: dict[str, list[Encoded]]) -> tuple[list[Release], list[float]]:
    """Everyone's release of one round, and the noise multiplier in each."""
    with worlds.opened(scenario, world, users) as node:
        releases, purse = list(worlds.train(node).values()), node.purse
        if purse is None or not scenario.privacy.of_examples:
            return releases, [0.0] * len(releases)
        return releases, [(purse.noise(user, len(x), 1) or {})["shared"] for user, x in users.items()]


def _answered(examples: Sequence[Encoded]) -> list[Encoded]:
    """Each prompt once, with the user's last answer: two answers to one prompt may cancel out."""
    return list({worlds.prompt(e): e for e in examples}.values())


def _sum(release: Release, examples: int) -> Tensor:
    """What one SGD step summed up over a user's examples, float64 [P]."""
    return flat(release.update) * (-examples / LR / release.weight)


def _solved(gram_MM: Tensor, match_M: Tensor, deviation: float, examples: int) -> Tensor:
    """What each prompt has in a sum, [M]: ridge regression, in which a prompt is in with probability examples / M."""
    size = len(gram_MM)
    ridge = deviation**2 * size / examples + ROUNDING**2 * float(gram_MM.diagonal().mean())
    return torch.linalg.solve(gram_MM + ridge * torch.eye(size, dtype=torch.float64), match_M)


def _judged(solved: Sequence[Tensor], truth: Sequence[dict[int, int]]) -> Choices:
    named = [set(x_M.abs().topk(len(t)).indices.tolist()) for x_M, t in zip(solved, truth, strict=True)]
    hits = sum(len(n & t.keys()) for n, t in zip(named, truth, strict=True))
    right = [bool(x_M[at] < 0) == bool(label) for x_M, t in zip(solved, truth, strict=True) for at, label in t.items()]
    usual = sum(max(ones := sum(t.values()), len(t) - ones) for t in truth)
    size, total = len(solved[0]), sum(map(len, truth))
    blind = sum(len(t) ** 2 for t in truth) / size / total
    return Choices(len(truth), total, size, hits / total, blind, sum(right) / total, usual / total)


def _stirred(value: Tensor, name: str) -> Tensor:
    """A shared adapter as after some rounds: both factors other than zero."""
    return value + 0.02 * torch.randn(value.shape, generator=generator("stirred", name))


@torch.no_grad()
def _inputs(base: Base) -> Tensor:
    """What goes into the lowest layer's attention for each token of the vocabulary, [V, D] float64, each of length 1."""
    first: Any = base.layers[0]
    inputs_VD = first.input_layernorm(base.model.get_input_embeddings().weight).cpu().double()
    return inputs_VD / inputs_VD.norm(dim=1, keepdim=True)


def _outside(slope_RD: Tensor, inputs_VD: Tensor) -> Tensor:
    """How much of each token's input lies outside the span of the update's rows, [V], 0 to 1."""
    _, size_R, rows_RD = torch.linalg.svd(slope_RD.double(), full_matrices=False)
    span_RD = rows_RD[size_R > ROUNDING * size_R[0]]
    return (inputs_VD - inputs_VD @ span_RD.T @ span_RD).norm(dim=1)
