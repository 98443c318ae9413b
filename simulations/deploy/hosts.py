"""Several hosts on one machine: a network namespace for each, joined by a bridge; loopback where namespaces are refused."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Hosts:
    """Where the server is seen, and how a command runs on a host."""

    address: str
    apart: bool  # whether hosts have networks of their own
    tag: str = ""

    def on(self, host: str) -> list[str]:
        """What comes before a command that is to run on a host."""
        return ["ip", "netns", "exec", f"{self.tag}-{host}"] if self.apart else []

    def cut(self, host: str, down: bool = True) -> None:
        """Take a host's network away, or give it back."""
        _ip("link", "set", f"{self.tag}{host}", "down" if down else "up")


@contextmanager
def hosts(names: Sequence[str]) -> Iterator[Hosts]:
    """Hosts by these names (short ones: an interface's name has 15 characters); gone afterwards."""
    tag = f"hm{os.getpid() % 100000}"
    with ExitStack() as stack:
        try:
            _ip("link", "add", tag, "type", "bridge")
            stack.callback(_ip, "link", "del", tag)
            _ip("addr", "add", "10.77.0.1/24", "dev", tag)
            _ip("link", "set", tag, "up")
            for index, name in enumerate(names, 2):
                space, link = f"{tag}-{name}", f"{tag}{name}"
                _ip("netns", "add", space)
                stack.callback(_ip, "netns", "del", space)
                _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("link", "set", link, "master", tag, "up")
                _ip("-n", space, "addr", "add", f"10.77.0.{index}/24", "dev", "eth0")
                for device in ("eth0", "lo"):
                    _ip("-n", space, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError):
            stack.close()
            yield Hosts("127.0.0.1", False)
            return
        yield Hosts("10.77.0.1", True, tag)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
