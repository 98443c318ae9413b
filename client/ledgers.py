"""The ledgers of the guarantees that a node keeps by itself: E's, and U's where users noise their own releases."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from client.node import Node
from client.own_noise import OwnNoise
from client.purse import Purse
from strategies.privacy.joint import at_home
from strategies.privacy.ledger import JOINT, LEDGER, Ledger


@contextmanager
def opened(node: Node, folder: Path, run: str, keyed: bool) -> Iterator[None]:
    """Let a node spend from what lies in ``folder``, under the name ``run``. ``keyed`` as in `client.purse.Purse`."""
    with ExitStack() as stack:

        def ledger(name: str) -> Ledger:
            folder.mkdir(parents=True, exist_ok=True)
            return stack.enter_context(Ledger(folder / name))

        scenario = node.scenario
        node.purse = Purse(scenario, ledger(LEDGER), run, keyed, node.dataset.counts) if scenario.privacy.of_examples else None
        node.own = OwnNoise(scenario, ledger(JOINT), run, keyed) if at_home(scenario) else None
        yield
