"""Where runs and nodes keep what must outlive them."""

import os
from pathlib import Path


def home() -> Path:
    """``$HOMING_HOME``, else ``~/.local/share/homing``."""
    return Path(os.environ.get("HOMING_HOME") or Path.home() / ".local" / "share" / "homing")
