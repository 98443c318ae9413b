"""The registry of editors, which correct what one user's model says: one file and one line each."""

from collections.abc import Callable

from strategies.editors.contract import Editor
from strategies.editors.finetune import finetune
from strategies.editors.rank_one import rank_one

EDITORS: dict[str, Callable[..., Editor]] = {"rank_one": rank_one, "finetune": finetune}
