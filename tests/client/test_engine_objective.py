"""A row's loss is its own: equal to a plain loop, and blind to the other rows."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from client import objective
from client.adapters.layout import layout
from client.base import Base
from client.data.types import Encoded
from client.objective import choice_logits, logits, row_losses, token_losses
from client.score import mean_losses, scores
from client.tower import Predicting, Tower
from configs.scenario import Adapter, Engine

Texts = Callable[..., list[Encoded]]


def plain(base: Base, example: Encoded, label_ids: tuple[int, ...]) -> torch.Tensor:
    """One row through the model as it is, without padding."""
    found = base.model(input_ids=example.ids[None]).logits[0]
    if label_ids:
        return F.cross_entropy(found[-1, list(label_ids)], torch.tensor(example.label))
    return F.cross_entropy(found[example.start - 1 : -1], example.ids[example.start :])


@pytest.mark.parametrize("shape", [{}, {"final_logit_softcapping": 0.7}, {"logit_scale": 0.3}, {"logits_scaling": 4.0}],
                         ids=["plain", "Gemma 2", "Cohere", "Granite"])  # fmt: skip
@pytest.mark.parametrize("chunk", [3, 100])
def test_the_chunked_head_equals_plain_cross_entropy_in_value_and_gradient(
    any_base: Base, monkeypatch: pytest.MonkeyPatch, shape: dict[str, float], chunk: int
) -> None:
    monkeypatch.setattr(objective, "CHUNK", chunk)
    for name, value in shape.items():
        setattr(any_base.model.config, name, value)
    torch.manual_seed(1)
    hidden = torch.randn(10, 32, requires_grad=True)
    target, weight = torch.randint(96, (10,)), torch.rand(10)
    raw = any_base.model.get_output_embeddings()(hidden)
    raw = raw * shape.get("logit_scale", 1.0) / shape.get("logits_scaling", 1.0)
    if cap := shape.get("final_logit_softcapping"):
        raw = torch.tanh(raw / cap) * cap
    want = F.cross_entropy(raw, target, reduction="none")
    (slope,) = torch.autograd.grad((want * weight).sum(), hidden)
    got = token_losses(any_base, Predicting(hidden, target, target))
    (mine,) = torch.autograd.grad((got * weight).sum(), hidden)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mine, slope, atol=1e-7, rtol=1e-5)


def test_the_chunked_head_runs_without_gradients_too(base: Base) -> None:
    hidden, target = torch.randn(4, 32), torch.tensor([1, 2, 3, 4])
    with torch.no_grad():
        found = token_losses(base, Predicting(hidden, target, target))
    torch.testing.assert_close(found, F.cross_entropy(logits(base, hidden), target, reduction="none"))
    assert not found.requires_grad


@pytest.mark.parametrize("task", ["text", "answer", "choice"])
@pytest.mark.parametrize("layers", [0, 1])
def test_row_losses_equal_a_plain_loop(any_base: Base, texts: Texts, task: str, layers: int) -> None:
    labels = (4, 9, 7) if task == "choice" else ()
    rows = [*texts(0, 3, task=task, labels=3), *texts(2, 3, task=task, labels=3)]
    block = layout("shared", Adapter(layers=layers), any_base, 0)
    tower = Tower(any_base, (block,), Engine())
    found = row_losses(any_base, tower(rows, [(block, {n: v[None] for n, v in block.start.items()})]), len(rows), labels)
    tower.close()
    torch.testing.assert_close(found, torch.stack([plain(any_base, e, labels) for e in rows]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", ["text", "answer", "choice"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_row_does_not_feel_that_another_gets_longer(base: Base, texts: Texts, task: str, layers: int) -> None:
    labels = (4, 9) if task == "choice" else ()
    block = layout("shared", Adapter(layers=layers, rank=2), base, 0)
    tower = Tower(base, (block,), Engine())
    draw = torch.Generator().manual_seed(0)
    state = {n: v + 0.1 * torch.randn((2, *v.shape), generator=draw) for n, v in block.start.items()}
    found = []
    for length in (5, 6, 25):
        other = texts(8, 1, task=task, length=length)[0]
        leaves = {n: v.clone().requires_grad_() for n, v in state.items()}
        losses = row_losses(base, tower([texts(0, 1, task=task)[0], other], [(block, leaves)]), 2, labels)
        slopes = torch.autograd.grad(losses.sum(), list(leaves.values()))
        found.append((losses[0].detach(), torch.cat([s[0].flatten() for s in slopes])))
    tower.close()
    for loss, slope in found[1:]:
        torch.testing.assert_close(loss, found[0][0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(slope, found[0][1], atol=1e-5 * float(found[0][1].abs().max()), rtol=0)
    assert float(found[0][1].abs().max()) > 1e-3


@pytest.mark.parametrize("task", ["answer", "choice"])
@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize("tokens", [1, 40, 5000])
def test_scores_equal_a_plain_loop_at_any_width(base: Base, texts: Texts, task: str, common: bool, tokens: int) -> None:
    labels = (4, 9) if task == "choice" else ()
    work = [texts(0, 2, task=task), [], texts(1, 3, task=task), texts(0, 1, task=task)]
    block = layout("shared", Adapter(), base, 0)
    engine = Engine(tokens_per_pass=tokens)
    tower = Tower(base, (block,), engine)
    state = {n: v.expand(1 if common else len(work), *v.shape) for n, v in block.start.items()}  # as if there were none
    found = scores(tower, [(block, state)], work, engine, labels)
    means = mean_losses(tower, [(block, state)], work, engine, labels)
    tower.close()
    for examples, score, mean in zip(work, found, means, strict=True):
        assert len(score) == len(examples)
        if not examples:
            assert bool(mean.isnan())
            continue
        if labels:
            want = torch.stack([base.model(input_ids=e.ids[None]).logits[0, -1, list(labels)] for e in examples])
            loss = F.cross_entropy(want, torch.tensor([e.label for e in examples]))
        else:
            counts = torch.tensor([float(len(e.ids) - e.start) for e in examples])
            sums = torch.stack([plain(base, e, ()) for e in examples]) * counts
            want, loss = torch.stack([sums, counts], 1), sums.sum() / counts.sum()
        torch.testing.assert_close(score, want, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(mean, loss, atol=1e-5, rtol=1e-5)


def test_a_choice_looks_at_its_labels_tokens_only(base: Base, texts: Texts) -> None:
    rows = texts(0, 2, task="choice")
    tower = Tower(base, (), Engine())
    at = tower(rows, [])
    tower.close()
    torch.testing.assert_close(choice_logits(base, at, (4, 9)), logits(base, at.hidden_MD)[:, [4, 9]])
    assert at.target_M.tolist() == [e.label for e in rows]
