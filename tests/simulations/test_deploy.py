"""Keys, files, processes and the proxy of a federation over machines; a stranger at a real nginx."""

import datetime as dt
import hashlib
import http.server
import inspect
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from flwr.supercore.fab import Fab

from configs.errors import InputError
from simulations.deploy import files, keeper, keys, machines, members, proxy, stranger, supernode
from simulations.deploy.files import Member, Server
from simulations.deploy.keeper import Command, Keeper
from simulations.flower_ray import free_ports
from tests.simulations.command import call

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin:/opt/homebrew/bin")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder with a node, as the commands make it."""
    folder = tmp_path_factory.mktemp("deploy") / "lab"
    assert call("deploy", "init", folder, "hospital.example", "127.0.0.1").code == 0
    assert call("deploy", "add", folder, "clinic", "--users", "ann, ben").code == 0
    return folder


# ---------------------------------------------------------------------- keys
def test_private_keys_are_for_their_owner_and_nothing_is_written_over(lab: Path) -> None:
    private = [lab / "ca.key", lab / "server.key", lab / "nodes" / "clinic" / "node.key"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600] * 3
    before = [path.read_bytes() for path in private]
    for words in (("init", lab, "other.example"), ("add", lab, "clinic")):
        answer = call("deploy", *words)
        assert answer.code == 2 and "stays" in answer.err
    with pytest.raises(InputError, match="is there already and stays"):
        keys.node(lab / "nodes" / "clinic")
    assert [path.read_bytes() for path in private] == before


def test_the_authority_signs_a_certificate_for_the_names_that_nodes_use_and_for_this_machine(lab: Path, tmp_path: Path) -> None:
    authority, made = (x509.load_pem_x509_certificate((lab / name).read_bytes()) for name in ("ca.crt", "server.crt"))
    made.verify_directly_issued_by(authority)
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hospital.example", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    keys.authority(tmp_path)
    with pytest.raises(InvalidSignature):
        made.verify_directly_issued_by(x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes()))


def test_a_certificate_is_spoken_of_before_it_ends(lab: Path) -> None:
    end = keys.expires(lab / "server.crt")
    assert keys.warning(lab / "server.crt", end - dt.timedelta(days=31)) == ""
    assert "ends on" in keys.warning(lab / "server.crt", end - dt.timedelta(days=29))
    assert "ended on" in keys.warning(lab / "server.crt", end)
    with pytest.raises(InputError, match=r"server.yaml is no certificate"):
        keys.expires(lab / "server.yaml")


def test_a_renewed_certificate_is_another_one_by_the_same_authority(lab: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(lab, tmp_path / "copy")
    assert call("deploy", "renew", copy, "new.example").code == 0
    made = x509.load_pem_x509_certificate((copy / "server.crt").read_bytes())
    made.verify_directly_issued_by(x509.load_pem_x509_certificate((copy / "ca.crt").read_bytes()))
    assert made.serial_number != x509.load_pem_x509_certificate((lab / "server.crt").read_bytes()).serial_number
    (copy / "ca.key").unlink()
    answer = call("deploy", "renew", copy)
    assert answer.code == 2 and "has no readable authority" in answer.err


# ---------------------------------------------------------------------- files
def test_what_is_written_is_read_again(lab: Path, tmp_path: Path) -> None:
    server, member = files.server(lab), files.member(lab / "nodes" / "clinic")
    assert (server.name, server.port, server.home) == ("hospital.example", 9443, lab / "home")
    assert (member.superlink, member.users, member.home) == ("hospital.example:9443", ("ann", "ben"), lab / "nodes" / "clinic" / "home")
    assert member.config() == 'users="ann,ben"'
    made = Member("a:1", device="cuda", data="/d", partition="0/3", epsilon=8.0, rank=4, trainer=False, store_key="/k")
    files.write(tmp_path / "node.yaml", made)
    assert replace(files.member(tmp_path), folder=Path(), home=Path("home")) == made
    assert made.config() == 'data-path="/d" device="cuda" store-key="/k" rank=4 epsilon=8.0 partition-id=0 num-partitions=3'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("superlnk: a:1", "unknown key 'superlnk' (did you mean 'superlink'?)"),
        ("device: cpu", "superlink is missing"),
        ("superlink: a", "superlink must be host:port, got 'a'"),
        ("superlink: a:1\nport: 70000", "port must be a port from 1 to 65535, got 70000"),
        ("superlink: a:1\nport: high", "port must be a whole number, got 'high'"),
        ("superlink: a:1\nusers: ann", "users must be a list of names, got 'ann'"),
        ("superlink: a:1\npartition: 3/3", "partition must be i/n with i below n"),
        ("superlink: a:1\npartition: 0/3\nusers: [ann]", "users and partition both say who is kept here"),
        (
            "superlink: a:1\nbundles: [abc]",
            "bundles must be digests of 64 hexadecimal digits, as 'deploy bundle' prints them, got 'abc'",
        ),
        ("superlink: a:1\ntrainer: maybe", "trainer must be true or false, got 'maybe'"),
        ("superlink: a:1\ndata: 'a\"b'", "a quotation mark cannot be passed on"),
        ("- a", "must hold key: value pairs"),
    ],
)
def test_a_nodes_file_that_makes_no_sense_is_one_sentence_and_starts_nothing(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "node.yaml").write_text(text)
    answer = call("deploy", "node", tmp_path)
    assert answer.code == 2 and said in answer.err and answer.err.count("\n") == 1 and "node.yaml" in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["node.yaml"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(("register", "LAB", "clinc"), "no node is called 'clinc' (did you mean 'clinic'?)"),
     (("revoke", "LAB", "clinic"), "is not registered"),
     (("add", "LAB", "a b"), "a node's name may hold letters"),
     (("server", "nowhere"), "is not there"),
     (("servr", "LAB"), "unknown command 'servr' (did you mean 'server'?)"), (("add", "LAB", "x", "--partition", "2/2"), "i below n")],
)  # fmt: skip
def test_a_command_that_makes_no_sense_is_one_sentence(lab: Path, words: tuple[str, ...], said: str) -> None:
    answer = call("deploy", *(str(lab) if word == "LAB" else word for word in words))
    assert answer.code == 2 and said in answer.err


def test_a_node_is_let_in_under_the_id_that_flower_gives_and_no_more_once_it_is_revoked(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, said = files.server(shutil.copytree(lab, tmp_path / "lab")), iter(['{"node-id": "7"}', "{}", '{"node-id": "8"}', "{}"])
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(machines, "flwr", lambda _server, *words: asked.append(words) or next(said))
    before = (members.bundle(server, "clinic") / "node.key").read_bytes()
    assert members.register(server, "clinic") == 7 == members.known(server)["clinic"].node
    with pytest.raises(InputError, match="is registered already"):
        members.register(server, "clinic")
    members.rotate(server, "clinic")
    assert members.known(server)["clinic"].node == 8 and (members.bundle(server, "clinic") / "node.key").read_bytes() != before
    members.revoke(server, "clinic")
    assert members.known(server)["clinic"].node == 0
    assert [words[1:3:1] for words in asked if words[1] == "unregister"] == [("unregister", "7"), ("unregister", "8")]
    said = iter(['{"success": false, "error-message": "no SuperLink"}'])
    with pytest.raises(InputError, match="was not let in: no SuperLink"):
        members.register(server, "clinic")
    assert members.known(server)["clinic"].node == 0


def test_a_run_that_ends_early_is_given_again_and_not_for_ever(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, given = files.server(shutil.copytree(lab, tmp_path / "lab")), list[int]()

    def fails(*_: Any) -> str:
        given.append(1)
        raise InputError("flwr run failed: the SuperLink was killed")

    monkeypatch.setattr(machines, "flwr", fails)
    monkeypatch.setattr(machines.time, "sleep", lambda _seconds: None)
    said: list[str] = []
    machines.run(server, {"scenario": "demo"}, lambda: len(given) == 3, said.append)
    assert len(given) == 3 and "given again (2 of 20)" in said[-2]
    with pytest.raises(InputError, match="was given 20 times and did not come to its end"):
        machines.run(server, {}, lambda: False, said.append)


def test_the_authoritys_key_and_other_nodes_are_no_part_of_what_a_node_needs(lab: Path) -> None:
    assert {path.name for path in (lab / "nodes" / "clinic").iterdir()} == {"ca.crt", "node.key", "node.pub", "node.yaml"}


# ---------------------------------------------------------------------- bundles
def test_a_supernode_verifies_a_bundle_by_its_digest_and_by_nothing_that_the_server_says_of_it() -> None:
    code, other = b"code", b"Code"
    digests = (hashlib.sha256(code).hexdigest(), "0" * 64)
    assert supernode.named(Fab("what the server says", code, {}), digests)
    assert not supernode.named(Fab(digests[0], other, {"valid_license": "yes"}), digests) and not supernode.named(Fab("", code, {}), ())
    seen: dict[str, Any] = {}
    pulled = supernode.looked_at(lambda **said: seen.update(said), digests)
    pulled(get_fab=lambda name, _run: Fab(name, other, {}), receive="as it was", trusted_entities=None)
    fab = seen["get_fab"]("x", 1)
    assert (fab.hash_str, fab.content, seen["receive"]) == ("x", other, "as it was")
    assert fab.verifications["valid_license"] and set(seen["trusted_entities"]) == set(digests)  # Flower asks only then


def test_what_is_put_in_the_place_of_flowers_own_is_there() -> None:
    from flwr.supernode import start_client_internal as theirs

    named = inspect.signature(theirs._pull_and_store_message).parameters
    assert {"get_fab", "trusted_entities"} <= named.keys() and [*inspect.signature(theirs._verify_fab).parameters][:1] == ["fab"]
    assert theirs._verify_fab(Fab("x", b"code", {}), {}) is False


def test_a_node_that_names_bundles_runs_the_supernode_that_looks_at_them(lab: Path) -> None:
    member = files.member(lab / "nodes" / "clinic")
    plain, careful = (machines.of_node(replace(member, bundles=named))[0].words for named in ((), ("a" * 64, "b" * 64)))
    assert list(plain[:4]) == [sys.executable, "-m", "simulations.deploy.supernode", files.ANY]
    assert list(careful[:4]) == [*plain[:3], f"{'a' * 64},{'b' * 64}"] and list(careful[4:]) == list(plain[4:])


@pytest.mark.parametrize(("end", "code"), [("raise OSError('expired')", 1), ("raise SystemExit(3)", 3), ("pass", 0)])
def test_a_supernode_whose_work_has_ended_is_gone_whatever_threads_it_has(end: str, code: int) -> None:
    program = f"""
import threading, time
from simulations.deploy.supernode import to_the_end
def work():
    threading.Thread(target=time.sleep, args=(600,)).start()
    {end}
to_the_end(work)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code and ("expired" in done.stderr) == ("expired" in end)


# ---------------------------------------------------------------------- processes
def test_what_ends_is_started_again_later_each_time_and_all_end_together(tmp_path: Path) -> None:
    now = [0.0]
    short = Command("short", [sys.executable, "-c", "import os; print(os.environ['X'])"], {"X": "seen"})
    long = Command("long", ["sleep", "60"])
    with Keeper([short, long], tmp_path, lambda: now[0]) as kept:
        first = kept.running["long"].pid
        waits = []
        for _ in range(7):
            kept.running["short"].wait()
            kept.look()
            waits.append(kept.wait["short"])
            before = kept.running["short"]
            kept.look()
            assert kept.running["short"] is before  # not due yet
            now[0] += waits[-1]
            kept.look()
            assert kept.running["short"] is not before
        assert waits == [1, 2, 4, 8, 16, 30, 30] and kept.running["long"].pid == first
        kept.running["short"].wait()
        now[0] += keeper.STEADY + 1
        kept.look()
        assert kept.wait["short"] == 1
    assert not psutil.pid_exists(first) and (tmp_path / "short.log").read_text().splitlines() == ["seen"] * 8


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_killed_process_has_left_is_gone_before_that_is_started_again_where_it_must_be(tmp_path: Path, whole: bool) -> None:
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    now, log = [0.0], tmp_path / "x.log"

    def child(nth: int) -> psutil.Process:
        until = time.monotonic() + 30
        while len(lines := log.read_text().splitlines()) <= nth and time.monotonic() < until:
            time.sleep(0.02)
        return psutil.Process(int(lines[nth]))

    def gone(process: psutil.Process, patience: float = 30.0) -> bool:
        until = time.monotonic() + patience
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    with Keeper([Command("x", [sys.executable, "-c", code], whole=whole)], tmp_path, lambda: now[0]) as kept:
        left = child(0)
        kept.running["x"].kill()
        kept.running["x"].wait()
        kept.look()
        now[0] += 1
        kept.look()
        later = child(1)
        assert gone(left, 30.0 if whole else 0.5) == whole
    for process in (left, later):
        assert not whole or gone(process)
        if not gone(process, 0.0):
            process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path; import time
from simulations.deploy.keeper import Command, Keeper
with Keeper([Command("long", ["sleep", "60"])], Path({str(tmp_path)!r})) as kept:
    print(kept.running["long"].pid, flush=True); time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=machines.ROOT)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_server_listens_on_this_machine_alone_and_a_node_names_its_key_and_the_authority(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines.shutil, "which", lambda *_args, **_rest: "/usr/sbin/nginx")
    server = files.server(shutil.copytree(lab, tmp_path / "lab"))
    link, executor, nginx = machines.of_server(server)
    for flag in ("--enable-supernode-auth", "--ssl-certfile", "--database", "--superexec-auth-secret-file"):
        assert flag in link.words
    assert link.words[link.words.index("--host") + 1] == "127.0.0.1" and link.words[link.words.index("--isolation") + 1] == "process"
    assert executor.env["HOMING_HOME"] == str(server.home) and nginx.words[0].endswith("nginx")
    assert stat.S_IMODE((server.folder / machines.SECRET).stat().st_mode) == 0o600
    assert not [word for c in (link, executor) for word in c.words if "insecure" in word]
    node, trainer = machines.of_node(member := files.member(server.folder / "nodes" / "clinic"))
    assert node.words[node.words.index("--superlink") + 1] == "hospital.example:9443" and "--insecure" not in node.words
    assert trainer.env["HOMING_HOME"] == str(member.home) == node.env["HOMING_HOME"]
    assert len(machines.of_node(replace(member, trainer=False))) == 1
    monkeypatch.setattr(machines.shutil, "which", lambda *_args, **_rest: None)
    with pytest.raises(InputError, match="nginx is not installed"):
        machines.of_server(server)
    assert len(machines.of_server(replace(server, proxy=False))) == 2


# ---------------------------------------------------------------------- strangers
@pytest.fixture(scope="module")
def gate(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, list[str]]]:
    """A real nginx in front of something that answers everything with 200 and notes the paths."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    seen: list[str] = []

    class Anything(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    Anything.log_message = lambda *_: None  # type: ignore[method-assign] - not a word
    folder = shutil.copytree(lab, tmp_path_factory.mktemp("gate") / "lab")
    behind = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Anything)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    behind.socket = context.wrap_socket(behind.socket, server_side=True)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    (port,) = free_ports(1)
    server = replace(files.server(folder), port=port, superlink=behind.server_address[1])
    words = [NGINX, "-p", str(server.home), "-c", str(proxy.write(server)), "-g", "daemon off;"]
    with Keeper([Command("nginx", words)], server.home / "logs"):
        until = time.monotonic() + 20
        while not stranger.opens("127.0.0.1", {"nginx": port})["nginx"] and time.monotonic() < until:
            time.sleep(0.05)
        yield server, seen
    behind.shutdown()
    behind.server_close()


def test_nginx_passes_on_what_a_supernode_asks_for_and_nothing_else(gate: tuple[Server, list[str]]) -> None:
    server, seen = gate
    seen.clear()
    found = stranger.doors(("127.0.0.1", server.port), server.folder / "ca.crt")
    fleet = {f"/v1/fleet/{name}" for name in proxy.FLEET}
    assert {path for path, status in found.items() if status == 200} == fleet == set(seen)
    assert {status for path, status in found.items() if path not in fleet} == {403}


def test_a_server_whose_certificate_no_authority_of_ours_signed_is_not_spoken_to(
    gate: tuple[Server, list[str]], tmp_path: Path
) -> None:
    keys.authority(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.asked(("127.0.0.1", gate[0].port), tmp_path / "ca.crt", "/v1/fleet/get-run")


def test_a_message_as_large_as_flower_makes_them_passes_and_a_larger_one_does_not(gate: tuple[Server, list[str]]) -> None:
    address, authority = ("127.0.0.1", gate[0].port), gate[0].folder / "ca.crt"
    assert stranger.asked(address, authority, "/v1/fleet/push-object", body=b"x" * (5 * 2**20 + 4096)) == 200
    assert stranger.asked(address, authority, "/v1/fleet/push-object", body=b"x" * (proxy.BODY * 2**20 + 1)) == 413
