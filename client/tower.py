"""The frozen stack as the engine runs it: below the lowest adapter once and cached, above it with every user's adapters.

Four ways in, each exact; the constructor tries the fastest that applies and checks it against a plain forward:

* ``ids``     the whole model (an adapter on every layer; with a soft prompt before them all it is always this);
* ``hidden``  hidden states at the lowest adapted layer are cached; only the layers from there on are computed;
* ``keys``    only the top layer is adapted and its keys and values do not depend on it: these are cached too, and only the
              positions that predict something are computed. A choice after a prompt of 20 tokens then costs one token.
* ``tail``    only the top layer's last linear module is adapted, and what it says is added to the residual stream: its input, its
              output and the rest of the stream are cached. A step then costs what the adapters and the final norm cost.

A late prompt enters at the layer that it begins in: with ``keys`` as keys and values before the cached ones, else as positions before
the tokens', which from that layer on are so many later. With ``tail`` that layer is not computed, so that it never applies.

Shape suffixes: N rows = K users * b, T tokens, Q computed positions, D hidden, H key/value heads, E head size, n a prompt's vectors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from client.adapters import late_prompt
from client.adapters.layout import Layout, has_prompt
from client.adapters.prompt import NAME as PROMPT
from client.adapters.types import Part
from client.base import Base
from client.cache import ActivationCache, Entry, open_cache
from client.capture import Captured, FixedKeys
from client.data.types import Encoded
from client.rows import Rows, pad
from configs.scenario import Engine
from strategies.tree import State

Way = Literal["ids", "hidden", "keys", "tail"]
Blocks = Sequence[tuple[Layout, State]]  # adapters with their parameters (leading K, or 1), in the order they are applied


@dataclass(frozen=True)
class Predicting:
    """Final hidden states at the positions that predict something, row by row."""

    hidden_MD: Tensor
    row_M: Tensor  # int64, which row each belongs to
    target_M: Tensor  # int64, the next token, or the label's index for a choice


class Tower:
    """A base model with hooks for adapters. One at a time per base; `close` takes the hooks off."""

    def __init__(self, base: Base, layouts: Sequence[Layout], engine: Engine) -> None:
        self.base, self.decoder = base, base.model.base_model
        self.tokens_per_pass = engine.tokens_per_pass
        self.parts: dict[str, list[Part]] = {}
        plain = [x for x in layouts if not has_prompt((x,))]
        self.prompted = len(plain) < len(layouts)  # a pass without the soft prompt goes as if there were none
        self.entry = max(min((x.lowest for x in plain), default=0), 0)
        self.late = next((x.lowest for x in plain if x.config.kind == late_prompt.KIND), -1)  # the layer a late prompt begins in
        self.begin = 0  # layers below it are skipped
        self.injected: Tensor | None = None  # what goes into that layer
        self.watched, self.seen = -1, list[Tensor]()  # the layer of which what goes in is wanted, and where that goes
        names = dict.fromkeys(m for x in layouts for m in x.modules)
        self.tail = next(iter(names)) if len(names) == 1 else ""
        self.handles = [base.model.get_submodule(n).register_forward_hook(self._apply(n)) for n in names]
        doors = {self.entry, max(self.late, self.entry)}
        self.handles += [base.layers[i].register_forward_pre_hook(self._enter(i), with_kwargs=True) for i in doors]
        self.originals = [layer.forward for layer in base.layers]
        self._patch_layers(engine.checkpointing)
        self.cache = ActivationCache(0)
        self.last: tuple[tuple[Encoded, ...], Rows, Entry] | None = None
        self.way: Way = self._choose(plain)
        self.cache = open_cache(engine.cache, engine.cache_mb, base.model, f"{self.way}-{self.entry}")

    def close(self) -> None:
        """Give the base model back as it was."""
        for handle in self.handles:
            handle.remove()
        for layer, original in zip(self.base.layers, self.originals, strict=True):
            layer.forward = original

    # ------------------------------------------------------------------ a pass
    def __call__(self, examples: Sequence[Encoded], blocks: Blocks) -> Predicting:
        """Run examples (sorted by user, the same number for each) through the model with the users' adapters."""
        soft = next((state[PROMPT].flatten(0, -3) for _, state in blocks if PROMPT in state), None)
        if soft is not None:
            rows = pad(examples).to(self.base.device)
            with self._bound(blocks):
                return self._pick(self._forward_soft(rows, soft), rows, shift=soft.shape[1])
        rows, cached = self._batch(examples)
        late = next((late_prompt.vectors(state, layout.constants) for layout, state in blocks if late_prompt.NAME in state), None)
        with self._bound(blocks):
            if late is not None and self.way != "keys":
                return self._forward_late(rows, cached, late)
            if self.way == "ids":
                return self._pick(self._forward(input_ids=rows.ids_NT), rows)
            if self.way == "hidden":
                return self._pick(self._forward(cached["hidden"], input_ids=rows.ids_NT), rows)
            return self._forward_tail(rows, cached) if self.way == "tail" else self._forward_keys(rows, cached, late)

    def _batch(self, examples: Sequence[Encoded]) -> tuple[Rows, Entry]:
        """Examples as padded rows with what is cached of them. The last ones are kept: epochs over one batch repeat them."""
        if self.way == "ids":
            return pad(examples).to(self.base.device), {}
        if self.last is None or [*map(id, self.last[0])] != [*map(id, examples)]:
            rows = pad(examples).to(self.base.device)
            entries = self._entries(rows)
            self.last = tuple(examples), rows, {name: _padded([e[name] for e in entries]) for name in entries[0]}
        return self.last[1:]

    def positions(self, example: Encoded) -> int:
        """How many positions of an example are computed with adapters, at most: what a planner counts."""
        return example.length - example.start + 1 if self.way in ("keys", "tail") and not self.prompted else example.length

    def depth(self) -> int:
        """How many layers a pass goes through with adapters, at most."""
        return len(self.base.layers) - (0 if self.prompted else self.entry)

    def warm(self, examples: Sequence[Encoded]) -> None:
        """Fill the cache for these examples, in order of length, in passes of the token budget."""
        if self.way == "ids" or not self.cache.limit:
            return
        unique = {e.key: e for e in examples}
        todo = sorted((e for k, e in unique.items() if self.cache.get(k) is None), key=lambda e: e.length)
        while todo:
            width = max(1, self.tokens_per_pass // todo[0].length)
            while width > 1 and width * todo[min(width, len(todo)) - 1].length > self.tokens_per_pass:
                width -= 1
            self._entries(pad(todo[:width]).to(self.base.device))
            todo = todo[width:]

    # ------------------------------------------------------------------ inside
    def _forward(self, hidden: Tensor | None = None, at: int | None = None, **inputs: Any) -> Tensor:
        """The decoder, or with ``hidden`` what of it lies above the input of layer ``at``, by default the entry."""
        self.injected, self.begin = hidden, 0 if hidden is None else self.entry if at is None else at
        try:
            return self.decoder(use_cache=False, **inputs).last_hidden_state
        finally:
            self.injected, self.begin = None, 0

    def _forward_soft(self, rows: Rows, soft_KnD: Tensor) -> Tensor:
        tokens = self.base.model.get_input_embeddings()(rows.ids_NT)
        each = tokens.shape[0] // soft_KnD.shape[0]
        before = soft_KnD.to(tokens.dtype).repeat_interleave(each, 0)
        return self._forward(inputs_embeds=torch.cat([before, tokens], 1))

    def _forward_late(self, rows: Rows, cached: Entry, soft_KnD: Tensor) -> Predicting:
        hidden_NTD = cached["hidden"] if self.way == "hidden" and self.late == self.entry else self._below_late(rows, cached)
        before = soft_KnD.to(hidden_NTD.dtype).repeat_interleave(len(hidden_NTD) // len(soft_KnD), 0)
        both = torch.cat([before, hidden_NTD], 1)
        return self._pick(self._forward(both, self.late, inputs_embeds=both), rows, shift=soft_KnD.shape[1])

    def _below_late(self, rows: Rows, cached: Entry) -> Tensor:
        """What goes into the layer that a late prompt begins in, with the adapters below it."""
        with self._watching(self.late) as seen:
            self._forward(cached.get("hidden"), input_ids=rows.ids_NT)
        return seen[0]

    def _late_keys(self, soft_KnD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a late prompt in the top layer, [K, H, n, E], at the positions before the first token's."""
        recorder, (users, count, _) = FixedKeys(self.entry), soft_KnD.shape
        at = torch.arange(-count, 0, device=soft_KnD.device).expand(users, count)
        with suppress(Captured):
            self._forward(soft_KnD.to(self.base.model.dtype), input_ids=torch.zeros_like(at), position_ids=at, past_key_values=recorder)
        assert recorder.keys is not None and recorder.values is not None
        return recorder.keys, recorder.values

    def _forward_tail(self, rows: Rows, cached: Entry) -> Predicting:
        input_NQI, output_NQD, rest_NQD = cached["input"], cached["output"], cached["rest"]
        for part in self.parts.get(self.tail, ()):
            output_NQD = part(input_NQI, output_NQD)
        query_NQ = rows.queries(rest_NQD.shape[1])
        final = self._forward(rest_NQD + output_NQD, input_ids=rows.ids_NT.gather(1, query_NQ))
        return self._select(final, rows.wanted(query_NQ), rows, query_NQ)

    def _forward_keys(self, rows: Rows, cached: Entry, late_KnD: Tensor | None = None) -> Predicting:
        hidden_NQD, keys_NHTE, values_NHTE = cached["hidden"], cached["keys"].transpose(1, 2), cached["values"].transpose(1, 2)
        query_NQ = rows.queries(hidden_NQD.shape[1])
        seen_NQT = torch.arange(keys_NHTE.shape[2], device=hidden_NQD.device) <= query_NQ[..., None]
        if late_KnD is not None:
            each = len(hidden_NQD) // len(late_KnD)
            before = (x.repeat_interleave(each, 0) for x in self._late_keys(late_KnD))
            keys_NHTE, values_NHTE = (torch.cat(pair, 2) for pair in zip(before, (keys_NHTE, values_NHTE), strict=True))
            seen_NQT = nn.functional.pad(seen_NQT, (late_KnD.shape[1], 0), value=True)
        mask = seen_NQT[:, None]
        if self.base.model.config._attn_implementation != "sdpa":
            mask = torch.zeros_like(mask, dtype=hidden_NQD.dtype).masked_fill(~mask, torch.finfo(hidden_NQD.dtype).min)
        final = self._forward(
            hidden_NQD,
            input_ids=rows.ids_NT.gather(1, query_NQ),
            position_ids=query_NQ,
            attention_mask=mask,
            past_key_values=FixedKeys(self.entry, keys_NHTE, values_NHTE),
        )
        return self._select(final, rows.wanted(query_NQ), rows, query_NQ)

    def _pick(self, final_NTD: Tensor, rows: Rows, shift: int = 0) -> Predicting:
        position = torch.arange(rows.ids_NT.shape[1], device=rows.ids_NT.device).expand_as(rows.ids_NT)
        return self._select(final_NTD[:, shift:], rows.predicting(), rows, position)

    @staticmethod
    def _select(final: Tensor, wanted: Tensor, rows: Rows, position: Tensor) -> Predicting:
        row_M, column_M = wanted.nonzero(as_tuple=True)
        following = (position[row_M, column_M] + 1).clamp(max=rows.ids_NT.shape[1] - 1)
        label_M = rows.label_N[row_M]
        target = torch.where(label_M >= 0, label_M, rows.ids_NT[row_M, following])
        return Predicting(final[row_M, column_M], row_M, target)

    def _entries(self, rows: Rows) -> list[Entry]:
        entries = [self.cache.get(key) for key in rows.keys]
        missing = {key: i for i, (key, e) in enumerate(zip(rows.keys, entries, strict=True)) if e is None}
        if missing:
            index = torch.tensor(list(missing.values()), device=rows.ids_NT.device)
            part = Rows(rows.ids_NT[index], rows.length_N[index], rows.start_N[index], rows.label_N[index], tuple(missing))
            made = dict(zip(missing, self._below(part), strict=True))
            for key, entry in made.items():
                self.cache.put(key, entry)
            entries = [made[k] if e is None else e for k, e in zip(rows.keys, entries, strict=True)]
        return [e for e in entries if e is not None]

    @torch.no_grad()
    def _below(self, rows: Rows, adapted: bool = False) -> list[Entry]:
        """Compute what is cached for each row: hidden states at the entry layer, and there keys and values if wanted."""
        if self.way == "tail":
            return self._before_tail(rows)
        recorder = FixedKeys(self.entry if self.way == "keys" else -1)
        bound, self.parts = self.parts, self.parts if adapted else {}
        try:
            with self._watching(self.entry) as seen:
                self.decoder(input_ids=rows.ids_NT, use_cache=False, past_key_values=recorder if self.way == "keys" else None)
        finally:
            self.parts = bound
        hidden = seen[0]
        lengths, starts = rows.length_N.tolist(), rows.start_N.tolist()
        if self.way == "hidden":
            return [{"hidden": hidden[i, :n].clone()} for i, n in enumerate(lengths)]
        assert recorder.keys is not None and recorder.values is not None
        keys_NTHE, values_NTHE = recorder.keys.transpose(1, 2), recorder.values.transpose(1, 2)
        return [
            {
                "hidden": hidden[i, s - 1 : n].clone(),
                "keys": keys_NTHE[i, :n].clone(),
                "values": values_NTHE[i, :n].clone(),
            }
            for i, (n, s) in enumerate(zip(lengths, starts, strict=True))
        ]

    def _before_tail(self, rows: Rows) -> list[Entry]:
        """What goes into the one adapted module, what comes out, and the rest of the stream, where something is predicted."""
        found: dict[str, Any] = {}
        bound, self.parts = self.parts, {}
        module, top = self.base.model.get_submodule(self.tail), self.base.layers[-1]
        hooks = [
            module.register_forward_hook(lambda _module, x, y: found.update(input=x[0], output=y)),
            top.register_forward_hook(lambda _module, _x, y: found.update(last=y[0] if isinstance(y, tuple) else y)),
        ]
        try:
            self.decoder(input_ids=rows.ids_NT, use_cache=False)
        finally:
            self.parts = bound
            for hook in hooks:
                hook.remove()
        kept = {"input": found["input"], "output": found["output"], "rest": found["last"] - found["output"]}
        spans = zip(rows.start_N.tolist(), rows.length_N.tolist(), strict=True)
        return [{name: value[i, s - 1 : n].clone() for name, value in kept.items()} for i, (s, n) in enumerate(spans)]

    # ------------------------------------------------------------------ hooks
    @contextmanager
    def _bound(self, blocks: Blocks) -> Iterator[None]:
        self.parts = {}
        for layout, state in blocks:
            for module, part in layout.parts(state).items():
                self.parts.setdefault(module, []).append(part)
        try:
            yield
        finally:
            self.parts = {}

    @contextmanager
    def _watching(self, layer: int) -> Iterator[list[Tensor]]:
        """What goes into a layer, of the one forward within, which ends there or where keys and values are known."""
        self.watched, self.seen = layer, []
        try:
            with suppress(Captured):
                yield self.seen
        finally:
            self.watched, self.seen = -1, []

    def _apply(self, name: str) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            for part in self.parts.get(name, ()):
                output = part(inputs[0], output)
            return output

        return hook

    def _enter(self, index: int) -> Callable[..., Any]:
        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.watched == index:
                self.seen.append(args[0])
                if self.way != "keys":
                    raise Captured
            return ((self.injected, *args[1:]), kwargs) if self.injected is not None and index == self.begin else None

        return hook

    def _patch_layers(self, recompute: bool) -> None:
        for index, (layer, original) in enumerate(zip(self.base.layers, self.originals, strict=True)):
            above = self._checkpointed(original) if recompute and (self.prompted or index >= self.entry) else original
            layer.forward = self._skippable(above, index)

    def _skippable(self, original: Callable[..., Any], index: int) -> Callable[..., Any]:
        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            skipped = self.injected is not None and (index < self.begin or self.way == "tail")
            return hidden if skipped else original(hidden, *args, **kwargs)

        return forward

    def _checkpointed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            parts = self.parts  # by the time of the backward pass others, or none, are bound

            def compute(*args: Any, **kwargs: Any) -> Any:
                bound, self.parts = self.parts, parts
                try:
                    return original(*args, **kwargs)
                finally:
                    self.parts = bound

            return checkpoint(compute, *args, use_reentrant=False, **kwargs)

        return forward

    # ------------------------------------------------------------------ which way in
    @torch.no_grad()
    def _choose(self, layouts: Sequence[Layout]) -> Way:
        """The fastest way in that gives what a plain forward gives, with strong random adapters on two odd sequences."""
        if not layouts or self.entry == 0:
            return "ids"
        probe = [_probe(7), _probe(11)]
        noise = torch.Generator().manual_seed(0)
        blocks = [(x, {n: _loud(v, noise) for n, v in x.start.items()}) for x in layouts]
        self.way = "ids"
        plain = self(probe, blocks).hidden_MD
        applies = {"tail": lambda: bool(self.tail), "keys": lambda: self._keys_stay(probe, blocks), "hidden": lambda: True}
        for way in ("tail", "keys", "hidden"):
            self.way, self.last = way, None
            try:
                same = applies[way]() and torch.allclose(
                    self(probe, blocks).hidden_MD, plain, atol=2e-2 if plain.dtype != torch.float32 else 1e-4, rtol=1e-3
                )
            except (
                RuntimeError,
                TypeError,
                AttributeError,
                AssertionError,
                LookupError,
            ):  # an architecture that takes no such cache
                same = False
            if same:
                break
        else:
            way = "ids"
        self.last = None
        return way

    def _keys_stay(self, probe: Sequence[Encoded], blocks: Blocks) -> bool:
        """Whether only the top layer is adapted, it sees every position before, and no adapter changes its keys or values."""
        config = self.base.model.config
        window = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        kinds = getattr(config, "layer_types", None) or [window] * len(self.base.layers)
        if self.entry != len(self.base.layers) - 1 or kinds[self.entry] != "full_attention":
            return False
        rows = pad(probe).to(self.base.device)
        with self._bound(blocks):
            pairs = zip(self._below(rows), self._below(rows, adapted=True), strict=True)
            return all(torch.equal(bare[n], adapted[n]) for bare, adapted in pairs for n in ("keys", "values"))


def _padded(values: Sequence[Tensor]) -> Tensor:
    if len({value.shape for value in values}) == 1:
        return torch.stack(list(values))
    return nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def _probe(length: int) -> Encoded:
    return Encoded(torch.arange(3, 3 + length), length - 2, -1, 0)


def _loud(value: Tensor, noise: torch.Generator) -> Tensor:
    return (value + 0.1 * torch.randn(value.shape, generator=noise).to(value.device)).unsqueeze(0)
