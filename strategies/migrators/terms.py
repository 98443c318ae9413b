"""What a migrator is: how the change that an adapter makes to one base becomes a change of another base.

A module of a base has a weight W [O, I], and an adapter adds dW = B A to it, B [O, R] and A [R, I]. On the new base, with I' inputs and
O' outputs, it adds out(B) into(A^T)^T: both are linear, so that a product in factors stays one in factors.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from configs.errors import InputError
from strategies.tree import State

PROMPT = ""  # stands where a module's name would: vectors in the stream before a user's tokens, at whatever layer


class Turn(NamedTuple):
    """A linear map of columns, [D, R] -> [D', R]."""

    apply: Callable[[Tensor], Tensor]
    moves: bool = False  # numbers only change their places


class Way(NamedTuple):
    """Where a module's change comes from. None: these directions are the same on both bases, and numbers stay to the bit."""

    source: str  # the module of the old base
    out: Turn | None = None
    into: Turn | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing changes."""
        return self.out is None and self.into is None


Ways = dict[str, Way]  # module of the new base -> the way; a module that is not in it begins anew


class Heads(NamedTuple):
    """How attention is cut up."""

    queries: int
    keys: int  # as many as of values
    size: int  # numbers of one


class Ground(NamedTuple):
    """What a base shows of itself."""

    weights: State  # every linear module of the decoder layers -> W [O, I]
    places: dict[str, tuple[int, str]]  # module -> (layer, its name within the layer)
    targets: tuple[str, ...]  # modules that carry an adapter; `PROMPT` among them: a prompt
    depth: int  # decoder layers
    embeddings_VD: Tensor
    heads: Heads
    activations_LND: Tensor | None = None  # what each layer adds at N tokens of public texts; None where nobody asked


class Migrator(NamedTuple):
    """One method. ``ways`` is pure; where it is None the method trains, and `client.migration.teach` or the round loop does that."""

    paper: str
    ways: Callable[[Ground, Ground], Ways] | None = None
    same_shapes: bool = False  # needs target modules of the same sizes on both bases
    same_tokenizer: bool = True  # needs one tokenizer
    uses_data: bool = False  # of users, so that it spends budget; without, migration is post-processing and an epsilon stays as it was
    trains: bool = False
    texts: bool = False  # looks at what both bases make of public texts
    exact: bool = False  # from a base to itself it changes no logit
    steps: int = 0  # of training, where it trains by itself
    lr: float = 0.0


def from_top(old: Ground, new: Ground) -> Ways:
    """Each target of the new base and the module of the same name in the layer as far from the top."""
    known = {place: module for module, place in old.places.items()}
    found = {}
    for module in new.targets:
        layer, name = new.places.get(module, (-1, module))
        source = known.get((layer - new.depth + old.depth, name), "") if module != PROMPT else PROMPT
        if source or module == PROMPT:
            found[module] = Way(source)
    return found


def refuse_shapes(said: str, ways: Ways, old: Ground, new: Ground) -> None:
    """Raise `InputError` where a module and its source differ in size, or a target has none."""
    for module in new.targets:
        if module not in ways:
            raise InputError(f"{said} finds no module like '{module}' in the old base; use --with layers or distill")
        there, here = sizes(old, ways[module].source), sizes(new, module)
        if there != here:
            raise InputError(
                f"{said} needs equal shapes: '{_said(module)}' is {there} there and {here} here; use --with layers or distill"
            )


def sizes(ground: Ground, module: str) -> list[int]:
    """[O, I] of a module; of a prompt the length of its vectors."""
    return list(ground.weights[module].shape) if module != PROMPT else [ground.embeddings_VD.shape[1]]


def _said(module: str) -> str:
    return module or "prompt"
