"""What a node has answered last, so that an order that comes again gets the same bytes: the same release, which costs no budget twice.

A server asks for a round again where an answer got lost, where too few of the others were heard from, or where it was killed. To train
again would be another release with other noise, paid for a second time. The bytes that were let out once may be let out again.
"""

import hashlib
import logging
from pathlib import Path

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto  # type: ignore[attr-defined]

from client.private import folder_name
from client.store import disk, places

RUNS = 4  # of so many runs, the latest, the last answer is kept
log = logging.getLogger("flwr.homing")


def name(order: RecordDict) -> str:
    """SHA-256 of an order: equal only for the same round from the same shared adapter, for the same users."""
    return hashlib.sha256(recorddict_to_proto(order).SerializeToString(deterministic=True)).hexdigest()


def known(home: Path, run: str, order: str) -> RecordDict | None:
    """What was answered to this order; None where the last answer was to another one, or is not there whole."""
    try:
        data = _path(home, run).read_bytes()
    except FileNotFoundError:
        return None
    head, content = data[:128].decode("ascii", "replace"), data[128:]
    if head != order + hashlib.sha256(content).hexdigest():
        return None
    return recorddict_from_proto(Proto.FromString(content))


def keep(home: Path, run: str, order: str, answer: RecordDict) -> None:
    """Keep an answer in the place of the run's last one. Where that fails, a repeated order costs again, and nothing else is lost."""
    content = recorddict_to_proto(answer).SerializeToString()
    path = _path(home, run)
    try:
        disk.make(path.parent)
        disk.write(path, (order + hashlib.sha256(content).hexdigest()).encode() + content, True)
        for old in sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-RUNS]:
            old.unlink()
    except OSError as error:
        log.warning("an answer is not kept (%s): the same order would cost again", error)


def _path(home: Path, run: str) -> Path:
    return home / places.ANSWERS / folder_name(run)
