"""Adapter kinds: one file and one line each. Those of `KINDS` act on linear modules; prompts stand before a user's tokens."""

from collections.abc import Callable

from client.adapters.core import CORE
from client.adapters.ia3 import IA3
from client.adapters.late_prompt import init_late_prompt
from client.adapters.lora import LORA
from client.adapters.mixed import MIXED
from client.adapters.prompt import init_prompt
from client.adapters.types import Kind

KINDS: dict[str, Kind] = {"lora": LORA, "core": CORE, "mixed": MIXED, "ia3": IA3}
PROMPTS: dict[str, Callable[..., object]] = {"prompt": init_prompt, "late_prompt": init_late_prompt}
