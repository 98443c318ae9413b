"""Flower's SuperNode, which ends when its work has ended, and runs no code but what its owner has named.

``python -m simulations.deploy.supernode DIGESTS SUPERNODE'S WORDS``; `ANY` instead of digests is no check.

What Flower does not try again, such as a server's certificate that has expired, ends a SuperNode's loop, and a thread that answers its
processes keeps it there: it does nothing, and nobody starts it again. Here the process ends with the loop.

A SuperLink hands out an app bundle, and a SuperNode runs it: whoever has the server has every node. Flower can ask for signed bundles,
and the open-source SuperLink passes no signatures on. So here a bundle is known by its SHA-256 (`digest`), which an operator reads off
the code that they have looked at (`deploy bundle`) and writes into ``node.yaml``. Another bundle is answered as Flower answers one
whose signature is wrong, before anything in it is unpacked.
"""

import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from flwr.cli.build import build_fab_from_disk
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.cli.flower_supernode import flower_supernode

from simulations.deploy.files import ANY


def digest(app: Path) -> str:
    """SHA-256 of the bundle that ``flwr run`` makes of a folder, as hexadecimal digits; equal files give equal bundles."""
    return hashlib.sha256(build_fab_from_disk(app)).hexdigest()


def named(bundle: Fab, digests: Collection[str]) -> bool:
    """Whether a bundle is one of these, by what it holds and not by what the server calls it."""
    return hashlib.sha256(bundle.content).hexdigest() in digests


def looked_at(pull: Callable[..., Any], digests: Collection[str]) -> Callable[..., Any]:
    """Flower's pull of a message, which verifies a bundle that is new, with these digests in the place of its trusted keys."""

    def pulled(**said: Any) -> Any:
        def get_fab(name: str, run: int) -> Fab:
            return replace(said["get_fab"](name, run), verifications={"valid_license": "by its digest"})  # else Flower does not ask

        return pull(**said | {"get_fab": get_fab, "trusted_entities": dict.fromkeys(digests, "")})

    return pulled


def main() -> None:
    """Be a SuperNode."""
    if (said := sys.argv.pop(1)) != ANY:
        supernode._pull_and_store_message = looked_at(supernode._pull_and_store_message, said.split(","))
        supernode._verify_fab = named
    to_the_end(flower_supernode)


def to_the_end(work: Callable[[], object]) -> NoReturn:
    """Do it, and end this process whatever threads are left."""
    code = 1
    try:
        work()
        code = 0
    except SystemExit as told:
        code = told.code if isinstance(told.code, int) else int(told.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
