"""Adapter kinds that act on linear modules: one file and one line each. A soft prompt acts before them (`prompt.py`)."""

from client.adapters.core import CORE
from client.adapters.ia3 import IA3
from client.adapters.lora import LORA
from client.adapters.mixed import MIXED
from client.adapters.types import Kind

KINDS: dict[str, Kind] = {"lora": LORA, "core": CORE, "mixed": MIXED, "ia3": IA3}
