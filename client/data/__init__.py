"""Users and their examples: read from a source, chosen, split by time, encoded as tokens.

``load`` is the way in; a new source is one file with a ``SOURCE`` and one line in ``sources.py``.
"""

from client.data.dataset import every_period, load
from client.data.sources import SOURCES
from client.data.types import Dataset, Encoded, Example, Source, Splits

__all__ = ["SOURCES", "Dataset", "Encoded", "Example", "Source", "Splits", "every_period", "load"]
