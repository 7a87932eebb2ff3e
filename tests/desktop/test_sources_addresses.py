"""Which addresses a task's URLs reach, over real sockets: names, redirects, proxies and certificates included."""

import asyncio
import contextlib
import http.server
import shutil
import ssl
import subprocess
import threading

import pytest

from arpo.desktop.addresses import AddressPolicy, AddressRefused
from arpo.desktop.guest_desktop import GuestDesktop
from arpo.desktop.sources import SourceError, Sources
from arpo.protocol.problems import ConfigError, ProblemCode, ProblemError
from arpo.providers.simulated.provider import SimulatedProvider
from arpo.tasks.validate import parse_task

LOCAL = AddressPolicy.parse(["127.0.0.1"])
SECRET = b"only for this host"


@contextlib.contextmanager
def serving(certificate=None):
    """A server that redirects /to?<url>, says SECRET otherwise, and what it was asked for: (Host, path)."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.headers["Host"], self.path))
            if self.path.startswith("/to?"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to?"))
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SECRET)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def fetch(url, **arguments):
    return asyncio.run(Sources(timeout_s=10, **arguments).fetch(url))


def refusal(url, **arguments):
    with pytest.raises(SourceError) as caught:
        fetch(url, **arguments)
    assert caught.value.permanent
    assert SECRET.decode() not in str(caught.value)
    return str(caught.value)


def names(**addresses):
    """A resolver that knows these names only, and what it was asked for."""
    asked = []

    async def resolve(host, port):
        asked.append(host)
        return addresses[host.replace(".", "_")]

    return resolve, asked


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.8.9.1", "localhost", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "127.1", "2130706433",
     "0x7f000001", "0177.0.0.1", "[2002:7f00:1::]", "[64:ff9b::127.0.0.1]"],
)  # fmt: skip
def test_a_task_does_not_reach_this_host_under_any_spelling(host):
    with serving() as (port, asked):
        message = refusal(f"http://{host}:{port}/")
        assert "--allow-address" in message or "Invalid IPv4 address" in message
        assert asked == []


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("169.254.169.254", "a link-local address"),
        ("10.0.0.1", "a private or reserved address"),
        ("172.16.0.1", "a private or reserved address"),
        ("192.168.0.1", "a private or reserved address"),
        ("100.64.0.1", "a private or reserved address"),
        ("198.18.0.1", "a private or reserved address"),
        ("240.0.0.1", "a private or reserved address"),
        ("255.255.255.255", "a private or reserved address"),
        ("224.0.0.1", "a multicast address"),
        ("[ff02::1]", "a multicast address"),
        ("[fe80::1]", "a link-local address"),
        ("[fd00::1]", "a private or reserved address"),
        ("[fec0::1]", "a private or reserved address"),
        ("[4000::1]", "a private or reserved address"),
        ("[::ffff:10.0.0.1]", "a private or reserved address"),
        ("[::10.0.0.1]", "a private or reserved address"),
        ("[64:ff9b::a9fe:a9fe]", "a link-local address"),
        ("[2001:0:102:304::f5ff:fffe]", "a private or reserved address"),  # Teredo around 10.0.0.1
    ],
)
def test_what_is_not_public_is_refused_with_its_kind_and_the_option_that_opens_it(host, reason):
    message = refusal(f"http://{host}/latest/meta-data")
    assert f"is {reason}: tasks reach public addresses only" in message
    assert "--allow-address" in message


@pytest.mark.parametrize("address", ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_permitted(address):
    AddressPolicy().check("example.org", address)
    AddressPolicy().check(address, address)


@pytest.mark.parametrize(
    ("entry", "host", "address"),
    [
        ("10.0.0.0/8", "files.lab", "10.1.2.3"),
        ("10.0.0.0/8", "10.1.2.3", "::ffff:10.1.2.3"),
        ("fd00::/8", "files.lab", "fd00::7"),
        ("[::1]", "::1", "::1"),
        ("Files.Lab.", "files.lab", "192.168.3.4"),
    ],
)
def test_the_operator_opens_names_addresses_and_networks(entry, host, address):
    AddressPolicy.parse([entry]).check(host, address)
    with pytest.raises(AddressRefused):
        AddressPolicy.parse([entry]).check("other.lab", "172.16.0.1")


@pytest.mark.parametrize(
    "entry", ["", "http://files.lab", "files.lab:80", "10.0.0.0/33", "10.0.0", "a b", "*.lab"]
)
def test_an_entry_that_is_no_address_is_a_configuration_error(entry):
    with pytest.raises(ConfigError, match=r"--allow-address .*: give a host name, an address or a network"):
        AddressPolicy.parse([entry])


def test_an_allowed_address_is_fetched_from():
    with serving() as (port, _):
        assert fetch(f"http://127.0.0.1:{port}/", allow=LOCAL) == SECRET
        assert fetch(f"http://localhost:{port}/", allow=AddressPolicy.parse(["localhost"])) == SECRET


def test_a_name_is_judged_by_its_address():
    with serving() as (port, asked):
        resolve, _ = names(files_example=["127.0.0.1"])
        message = refusal(f"http://files.example:{port}/", resolver=resolve)
        assert "files.example is 127.0.0.1, which is a loopback address" in message
        assert asked == []


def test_the_address_that_was_judged_is_the_one_connected_to():
    with serving() as (port, asked):
        resolve, looked_up = names(files_example=["169.254.1.1", "127.0.0.1"])
        assert fetch(f"http://files.example:{port}/a", allow=LOCAL, resolver=resolve) == SECRET
        assert asked == [(f"files.example:{port}", "/a")]
        assert looked_up == ["files.example"]  # asked again, it could answer another address


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/", "http://[::1]/", "file:///etc/passwd", "data:,x"]
)
def test_every_hop_of_a_redirect_is_judged(target):
    with serving() as (port, asked):
        url = f"http://127.0.0.1:{port}/to?"
        assert fetch(f"{url}http://127.0.0.1:{port}/end", allow=LOCAL) == SECRET
        asked.clear()
        message = refusal(f"{url}{target}", allow=LOCAL)
        assert any(
            reason in message for reason in ("public addresses only", "only http: and https:", "InvalidURL")
        )
        assert len(asked) == 1


def test_behind_a_proxy_names_are_its_own_but_private_ones_are_not_asked_for(monkeypatch):
    async def resolve(host, port):
        raise AssertionError(f"{host} is for the proxy to resolve")

    with serving() as (port, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        assert fetch("http://files.example/a", resolver=resolve) == SECRET
        assert asked == [("files.example", "http://files.example/a")]
        for host in (
            "localhost",
            "127.1",
            "169.254.169.254",
            "[::1]",
            "intranet",
            "metadata.google.internal",
        ):
            assert "--allow-address" in refusal(f"http://{host}/", resolver=resolve)
        assert len(asked) == 1
        assert fetch("http://intranet/", resolver=resolve, allow=AddressPolicy.parse(["intranet"])) == SECRET


def test_what_goes_past_the_proxy_is_resolved_and_judged(monkeypatch):
    resolve, _ = names(files_example=["10.0.0.1"])
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "files.example")
    assert "files.example is 10.0.0.1" in refusal("http://files.example/", resolver=resolve)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_is_that_of_the_name_not_of_the_address(tmp_path, monkeypatch):
    certificate = tmp_path / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=files.example",
               "-addext", "subjectAltName=DNS:files.example", "-keyout", tmp_path / "key.pem", "-out",
               tmp_path / "cert.pem"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    certificate.write_text((tmp_path / "key.pem").read_text() + (tmp_path / "cert.pem").read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    resolve, _ = names(files_example=["127.0.0.1"], other_example=["127.0.0.1"])
    with serving(certificate) as (port, _):
        assert fetch(f"https://files.example:{port}/", allow=LOCAL, resolver=resolve) == SECRET
        with pytest.raises(SourceError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(f"https://other.example:{port}/", allow=LOCAL, resolver=resolve)


def test_a_name_that_is_not_resolved_may_be_another_time():
    async def resolve(host, port):
        raise OSError("no answer")

    with pytest.raises(SourceError, match=r"files\.example cannot be resolved: no answer") as caught:
        fetch("http://files.example/", resolver=resolve)
    assert not caught.value.permanent


@pytest.mark.parametrize(
    "url",
    ["http://", "http://[::1", "http://a\0b/", "http://\ud800/", "suite:a/\0", "data:;base64,\xe9", 7, None],
)
def test_what_is_no_url_is_the_tasks_fault(url):
    with pytest.raises(SourceError):
        fetch(url)


def test_a_setup_that_reaches_for_this_host_is_an_invalid_task():
    with serving() as (port, asked):
        files = [{"url": f"http://localhost:{port}/", "path": "/home/user/a"}]
        config = [{"type": "download", "parameters": {"files": files}}]
        task = parse_task(
            {"id": "t", "instruction": "i", "config": config, "evaluator": {"func": "infeasible"}}, "task"
        )

        async def reset():
            desktop = GuestDesktop(SimulatedProvider())
            try:
                await desktop.reset(task)
            finally:
                await desktop.close()

        with pytest.raises(ProblemError) as caught:
            asyncio.run(reset())
        assert caught.value.code is ProblemCode.INVALID_TASK
        assert "setup step 1 (download)" in caught.value.problem.detail
        assert asked == []
