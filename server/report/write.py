"""Everything a finished run leaves for people, in one call."""

from pathlib import Path

from server.report.page import write_page
from server.report.summary import write_summary


def write(directory: str | Path) -> Path:
    """Write `summary.json` and `report.html` into a finished run's folder; returns the page."""
    write_summary(directory)
    return write_page(directory)
