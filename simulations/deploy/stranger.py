"""What a stranger gets who has reached the server's address and has the authority's certificate, and nothing else."""

import base64
import datetime as dt
import http.client
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest  # type: ignore[attr-defined]
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

from simulations.deploy.proxy import FLEET

CONTROL = ("start-run", "stop-run", "list-runs", "register-node", "unregister-node", "list-nodes", "stream-logs", "pull-artifacts")
RUNTIME = ("acquire-task", "pull-task-input", "push-task-output", "push-messages", "pull-messages", "get-nodes", "pull-object", "push-object")
OTHERS = ("/", "/docs", "/openapi.json", "/v1/fleet/", "/v1/fleet/../control/list-runs", "/v1/fleet/pull-messages/../../control/list-runs",
          "/v1/fleet/%2e%2e/control/list-runs", "//v1/control/list-runs", "/V1/CONTROL/list-runs")  # fmt: skip
REFUSED = frozenset({400, 401, 403, 404, 405})


def asked(address: tuple[str, int], authority: Path, path: str, headers: Mapping[str, str] = {}, body: bytes = b"",  # noqa: B006 - read only
          method: str = "POST") -> int:  # fmt: skip
    """The status of one request over TLS, to the letter: a path is not tidied up on its way."""
    context = ssl.create_default_context(cafile=str(authority))
    connection = http.client.HTTPSConnection(*address, timeout=30, context=context)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in {"Content-Type": "application/protobuf", "Content-Length": str(len(body)), **headers}.items():
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


def activate(address: tuple[str, int], authority: Path, key: ec.EllipticCurvePrivateKey, age: float = 0.0) -> int:
    """The status of a node's first request, with headers that were made ``age`` seconds ago."""
    headers = signed(key, dt.datetime.now(dt.UTC) - dt.timedelta(seconds=age))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = ActivateNodeRequest(public_key=public, heartbeat_interval=30.0).SerializeToString()
    return asked(address, authority, "/v1/fleet/activate-node", headers, body)


def pull(address: tuple[str, int], authority: Path, key: ec.EllipticCurvePrivateKey, node: int) -> int:
    """The status of asking for a node's messages with some key."""
    request = PullMessagesRequest()
    request.node.node_id = node
    return asked(address, authority, "/v1/fleet/pull-messages", signed(key, dt.datetime.now(dt.UTC)), request.SerializeToString())


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
