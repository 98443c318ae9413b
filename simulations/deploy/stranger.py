"""What a stranger gets who has reached the server's address and has the authority's certificate, and nothing else."""

import base64
import datetime as dt
import http.client
import json
import socket
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import PullMessagesRequest  # type: ignore[attr-defined]
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

from configs.errors import InputError
from simulations.deploy.proxy import FLEET

CONTROL = ("start-run", "stop-run", "list-runs", "register-node", "unregister-node", "list-nodes", "stream-logs", "pull-artifacts")
RUNTIME = ("acquire-task", "pull-task-input", "push-task-output", "push-messages", "pull-messages", "get-nodes", "pull-object",
           "push-object")  # fmt: skip
OTHERS = (
    "/", "/docs", "/openapi.json", "/v1/fleet/", "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/pull-messages/../../control/list-runs", "//v1/control/list-runs", "/V1/CONTROL/list-runs",
)  # fmt: skip
REFUSED = frozenset({400, 401, 403, 404, 405})


def asked(address: tuple[str, int], authority: Path, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> int:
    """The status of one request over TLS, to the letter: a path is not tidied up on its way."""
    context = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection(*address, timeout=30, context=context)
    try:
        connection.putrequest("POST", path, skip_accept_encoding=True)
        for name, value in {"Content-Type": "application/protobuf", "Content-Length": str(len(body)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


def signed(key: ec.EllipticCurvePrivateKey, at: dt.datetime) -> dict[str, str]:
    """The headers by which Flower knows a node: its public key, a time, and that time signed."""
    time = at.isoformat()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(time.encode(), ec.ECDSA(hashes.SHA256()))
    return {FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode(), TIMESTAMP_HEADER: time,
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode()}  # fmt: skip


def pull(address: tuple[str, int], authority: Path, key: ec.EllipticCurvePrivateKey, node: int, age: float = 0.0) -> int:
    """The status of asking for a node's messages with some key, in headers that were made ``age`` seconds ago."""
    request = PullMessagesRequest()
    request.node.node_id = node
    headers = signed(key, dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age))
    return asked(address, authority, "/v1/fleet/pull-messages", headers, request.SerializeToString())


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's key."""
    key = serialization.load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def doors(address: tuple[str, int], authority: Path) -> dict[str, int]:
    """Every path that a stranger may try, and the status that comes back."""
    paths = [*(f"/v1/control/{name}" for name in CONTROL), *(f"/v1/runtime/{name}" for name in RUNTIME),
             *(f"/v1/fleet/{name}" for name in FLEET), *OTHERS]  # fmt: skip
    return {path: asked(address, authority, path) for path in paths}


def opens(host: str, ports: Mapping[str, int]) -> dict[str, bool]:
    """Which of a host's ports answer."""
    found = {}
    for name, port in ports.items():
        found[name] = False
        with suppress(OSError), socket.create_connection((host, port), timeout=2):
            found[name] = True
    return found


def tried(address: tuple[str, int], link: int, authority: Path, unknown: Path, known: Path, own: int, other: int) -> list[str]:
    """Everything that has to be refused, with what came back. Raises `InputError` for what was let in."""
    answering = opens(address[0], {"nginx": address[1], "superlink": link})
    here = address[0] in ("127.0.0.1", "localhost")  # without namespaces a stranger is on the same host
    if not answering["nginx"] or (answering["superlink"] and not here):
        raise InputError(f"of the ports nginx alone may answer: {answering}")
    mine, theirs = private_key(known), private_key(unknown)
    if (status := pull(address, authority, mine, own)) != 200:
        raise InputError(f"a registered node was refused: {status}")
    found = doors(address, authority)
    found["unregistered key"] = pull(address, authority, theirs, own)
    found["a node's key for another node's messages"] = pull(address, authority, mine, other)
    found["headers of six minutes ago"] = pull(address, authority, mine, own, 360.0)
    if bad := [f"{what}: {status}" for what, status in found.items() if status not in REFUSED]:
        raise InputError(f"not refused: {', '.join(bad)}")
    ports = [f"port of {name}: {'open' if is_open else 'closed'}" for name, is_open in answering.items()]
    return ports + [f"{what}: {status}" for what, status in found.items()]


def main(host: str, port: str, link: str, *rest: str) -> None:
    """Try everything; prints it as JSON."""
    authority, unknown, known, own, other = rest
    try:
        said = tried((host, int(port)), int(link), Path(authority), Path(unknown), Path(known), int(own), int(other))
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
