"""A SuperNode that runs no code but what its owner has named: ``python -m simulations.deploy.bundles DIGESTS SUPERNODE'S WORDS``.

A SuperLink hands out an app bundle, and a SuperNode runs it: whoever has the server has every node. Flower can ask for signed bundles,
and the open-source SuperLink passes no signatures on. So here a bundle is known by its SHA-256 (`digest`), which an operator reads off
the code that they have looked at (`deploy bundle`) and writes into ``node.yaml``. Another bundle is answered as Flower answers one
whose signature is wrong, before anything in it is unpacked.
"""

import hashlib
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal as supernode
from flwr.supernode.cli.flower_supernode import flower_supernode


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
    digests = sys.argv.pop(1).split(",")
    supernode._pull_and_store_message = looked_at(supernode._pull_and_store_message, digests)
    supernode._verify_fab = named
    flower_supernode()


if __name__ == "__main__":
    main()
