"""Nothing of ours can be reached through an address that a customer names."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import egress
from inference.egress import Egress, check_url, is_public
from inference.errors import FetchFailed, InputRejected

PUBLIC = "93.184.216.34"

LOOPBACKS = [
    "http://127.0.0.1/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://foo.localhost/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://0.0.0.0/",
    "http://0/",
    "http://[::]/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0X7F.1/",
    "http://2130706433/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://00000177.0.0.1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",  # full-width digits
    "http://127。0。0。1/",
    "http://127｡0｡0｡1/",
    "http://ⓛocalhost/",
    "http://127.0.0.1./",
    "http://127.0.0.1:80/",
    "https://127.0.0.1:443/",
]
PRIVATE = [
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://198.19.255.255/",
    "http://192.0.2.1/",
    "http://203.0.113.9/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://metadata/",
    "http://metadata.google.internal/",
    "http://postgres/",
    "http://printer.local/",
    "http://1.0.0.127.in-addr.arpa/",
]
TUNNELS = [
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[fec0::1]/",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "http://[3fff::1]/",
    "http://[100::1]/",
]
MALFORMED = [
    "file:///etc/passwd",
    "ftp://example.com/a",
    "gopher://example.com/",
    "dict://example.com:11211/",
    "data:text/plain,hi",
    "jar:http://example.com!/a",
    "unix:/var/run/docker.sock",
    "//example.com/a",
    "example.com/a",
    "",
    "http://",
    "http:///a",
    "http://example.com:22/",
    "http://example.com:25/",
    "http://example.com:6379/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://example.com:/",
    "http://example.com:80x/",
    "http://user@example.com/",
    "http://user:pass@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1#@example.com/",
    "http://good.com\\@bad.com/",
    "http:\\\\example.com/",
    "http://example.com/a\tb",
    "http://example.com/\r\nHost: evil",
    "http://exa\nmple.com/",
    "http://example.com/a b",
    "http://example.com/\x00",
    " http://example.com/",
    "http://exa%6dple.com/",
    "http://127.0.0.1%00.example.com/",
    "http://[::1%25lo]/",
    "http://[::1/",
    "http://[example.com]/",
    "http://-example.com/",
    "http://exa mple.com/",
    "http://example..com/",
    "http://256.256.256.256/",
    "http://1.2.3.4.5/",
    "http://0x/",
    "http://example.com/\ud800",
    "http://" + "a" * 300 + ".com/",
    "http://example.com/" + "a" * 5000,
]


@pytest.mark.parametrize("url", LOOPBACKS + PRIVATE + TUNNELS + MALFORMED)
def test_such_urls_are_refused_without_asking_a_name_server(url, monkeypatch):
    def ask(*_args: object, **_more: object) -> None:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    with pytest.raises(InputRejected) as refused:
        check_url(url, allow_hosts=())
    assert refused.value.field == "url"
    assert refused.value.code == "invalid_url"


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTP://EXAMPLE.com:80/A?b=c#d", "http://example.com/A?b=c"),
        ("https://example.com./a", "https://example.com/a"),
        ("https://bücher.de/ü", "https://xn--bcher-kva.de/%C3%BC"),
        ("https://a_b.example.com/%20x", "https://a_b.example.com/%20x"),
        ("http://8.8.8.8/", "http://8.8.8.8/"),
        ("http://0x08080808/", "http://8.8.8.8/"),
        ("https://[2606:4700:4700::1111]/", "https://[2606:4700:4700::1111]/"),
        ("http://example.com:443/", "http://example.com:443/"),
        ("https://s3.example.com/k?X-Sig=a%2Fb&c=d+e", None),
    ],
)
def test_public_urls_are_taken_in_their_plain_form(url, plain):
    assert str(check_url(url, allow_hosts=())) == (plain or url)


def test_a_webhook_must_be_https_unless_the_operator_allows_the_host():
    with pytest.raises(InputRejected, match="https"):
        check_url("http://example.com/", https_only=True)
    allowed = {"hooks.lan:8080"}
    target = check_url("http://hooks.lan:8080/", allow_hosts=allowed, https_only=True)
    assert target.allowed


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9001/",
        "http://127.0.0.2:9000/",
        "http://127.0.0.1/",
        "http://user@127.0.0.1:9000/",
        "ftp://127.0.0.1:9000/",
    ],
)
def test_allowing_one_port_of_a_host_allows_nothing_else(url):
    allowed = {"127.0.0.1:9000"}
    assert check_url("http://127.0.0.1:9000/", allow_hosts=allowed).allowed
    with pytest.raises(InputRejected):
        check_url(url, allow_hosts=allowed)


def test_the_process_wide_setting_reaches_calls_without_one(monkeypatch):
    monkeypatch.setattr(egress, "_default_allowed", frozenset())
    with pytest.raises(InputRejected):
        check_url("http://[::1]:9000/")
    egress.configure(["[::1]:9000", "Files.Lan:80"])
    assert check_url("http://[::1]:9000/").allowed
    assert check_url("http://files.lan/").allowed


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("2a00:1450:4001::1", True),
        ("64:ff9b::808:808", False),
        ("::8.8.8.8", False),
        ("ff0e::1", False),
        ("233.252.0.1", False),
        ("168.63.129.16", False),
    ],
)
def test_what_counts_as_public(address, answer):
    assert is_public(ip_address(address)) is answer


# ------------------------------------------------------------- with a resolver


class Names:
    """A name server of our own that counts its questions."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, name: str, port: int) -> list[str]:
        self.asked.append(name)
        if len(self.answers) > 1:
            return self.answers.pop(0)
        return self.answers[0]


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to connect, none of which succeeds."""
    attempts: list[object] = []

    def refuse(address: object, *_args: object, **_more: object) -> None:
        attempts.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    return attempts


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["::1"],
        ["fe80::1%eth0"],
        ["::ffff:10.0.0.1"],
        ["64:ff9b::a00:1"],
        ["93.184.216.34", "10.0.0.1"],
        ["2606:4700:4700::1111", "fd00::1"],
        ["168.63.129.16"],
    ],
)
def test_a_public_name_with_any_private_address_is_never_connected_to(
    addresses, no_sockets
):
    names = Names(addresses)
    out = Egress(resolver=names)
    with pytest.raises(InputRejected, match="private address"):
        out.fetch("https://lvh.example/", max_bytes=10)
    with pytest.raises(InputRejected, match="private address"):
        out.post("https://lvh.example/", b"", {})
    assert no_sockets == []


def test_a_name_is_asked_for_once_and_that_address_is_used(no_sockets):
    names = Names([PUBLIC], ["127.0.0.1"])
    with pytest.raises(FetchFailed):
        Egress(resolver=names).fetch("http://rebind.example/", max_bytes=10)
    assert names.asked == ["rebind.example"]
    assert no_sockets == [(PUBLIC, 80)]


def test_the_environment_s_proxies_are_not_used(no_sockets, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:3128")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:3128")
    with pytest.raises(FetchFailed):
        Egress(resolver=Names([PUBLIC])).fetch("http://example.com/", max_bytes=10)
    assert no_sockets == [(PUBLIC, 80)]


def test_a_name_server_that_fails_may_answer_later():
    def fail(name: str, port: int) -> list[str]:
        raise socket.gaierror(-3, "try again")

    with pytest.raises(FetchFailed, match="resolved") as failed:
        Egress(resolver=fail).fetch("http://example.com/", max_bytes=10)
    assert not failed.value.permanent


def test_a_name_server_that_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(egress, "RESOLVE_SECONDS", 0.1)
    over = threading.Event()

    def hang(name: str, port: int) -> list[str]:
        over.wait(20)
        return [PUBLIC]

    started = time.monotonic()
    with pytest.raises(FetchFailed, match="in time"):
        Egress(resolver=hang).fetch("http://example.com/", max_bytes=10)
    assert time.monotonic() - started < 5
    over.set()


def test_names_of_our_own_are_refused():
    out = Egress(deny_hosts=["api.zoetrope.example"], resolver=Names([PUBLIC]))
    with pytest.raises(InputRejected, match="this service"):
        out.post("https://API.zoetrope.example/v1/jobs", b"", {})


# --------------------------------------------------------------- with a server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Callable[[BaseHTTPRequestHandler], None]
    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        self.seen.append({k.lower(): v for k, v in self.headers.items()})
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            type(self).script(self)

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_args: object) -> None:
        pass


def answer(
    body: bytes = b"hello", status: int = 200, **headers: str
) -> Callable[[BaseHTTPRequestHandler], None]:
    def script(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        sent = {"Content-Length": str(len(body))} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        for name, value in sent.items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return script


class Server:
    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.handler: type[Handler] = type("H", (Handler,), {"seen": []})
        self.say(answer())
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self.http.daemon_threads = True
        if context is not None:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, args=(0.02,)).start()

    @property
    def seen(self) -> list[dict[str, str]]:
        return self.handler.seen

    def say(self, script: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.handler.script = staticmethod(script)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def out(server: Server) -> Egress:
    return Egress([f"127.0.0.1:{server.port}"])


def test_what_is_there_is_fetched_plainly(server, out):
    assert out.fetch(server.url("/a?b=c"), max_bytes=5, accept="image/*") == b"hello"
    (seen,) = server.seen
    assert seen["host"] == f"127.0.0.1:{server.port}"
    assert seen["accept-encoding"] == "identity"
    assert seen["accept"] == "image/*"
    assert "cookie" not in seen
    assert "authorization" not in seen


def test_a_file_is_written_as_it_comes_and_gone_after_a_failure(server, out, tmp_path):
    target = tmp_path / "file"
    assert out.fetch_to(server.url(), target, max_bytes=5) == 5
    assert target.read_bytes() == b"hello"
    with pytest.raises(InputRejected):
        out.fetch_to(server.url(), target, max_bytes=4)
    assert not target.exists()


@pytest.mark.parametrize("length", ["", "10", "99999999999"])
def test_more_than_the_cap_is_never_taken(server, out, length):
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if length:
            handler.send_header("Content-Length", length)
        else:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        while True:
            handler.wfile.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    server.say(endless)
    with pytest.raises((InputRejected, FetchFailed)):
        out.fetch(server.url(), max_bytes=5)


def test_an_answer_shorter_than_promised_may_be_tried_again(server, out):
    def short(handler: BaseHTTPRequestHandler) -> None:
        answer(b"hell", Content_Length="5")(handler)
        handler.close_connection = True

    server.say(short)
    with pytest.raises(FetchFailed):
        out.fetch(server.url(), max_bytes=10)


def test_a_compressed_answer_is_refused(server, out):
    server.say(answer(b"x", Content_Encoding="gzip"))
    with pytest.raises(InputRejected, match="compressed"):
        out.fetch(server.url(), max_bytes=10)


@pytest.mark.parametrize("status", [204, 206, 400, 401, 403, 404, 410, 418])
def test_a_final_no_is_permanent(server, out, status):
    server.say(answer(b"", status))
    with pytest.raises(InputRejected, match=str(status)):
        out.fetch(server.url(), max_bytes=10)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_passing_no_may_be_tried_again(server, out, status):
    server.say(answer(b"", status))
    with pytest.raises(FetchFailed, match=str(status)):
        out.fetch(server.url(), max_bytes=10)


def test_nobody_listening_may_change():
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    with pytest.raises(FetchFailed):
        Egress([f"127.0.0.1:{port}"]).fetch(f"http://127.0.0.1:{port}/", max_bytes=1)


@pytest.mark.parametrize("where", ["header", "body"])
def test_a_server_that_drips_is_cut_at_the_deadline(server, out, where):
    def drip(handler: BaseHTTPRequestHandler) -> None:
        if where == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.say(drip)
    started = time.monotonic()
    with pytest.raises(FetchFailed, match="in time"):
        out.fetch(server.url(), max_bytes=10_000, deadline_seconds=0.4)
    assert time.monotonic() - started < 2


def test_a_server_below_the_minimum_rate_is_cut(server, out, monkeypatch):
    monkeypatch.setattr(egress, "RATE_GRACE_SECONDS", 0.2)

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.say(trickle)
    with pytest.raises(FetchFailed, match="slow"):
        out.fetch(server.url(), max_bytes=10_000, deadline_seconds=20)


def test_up_to_three_redirects_are_followed(server, out):
    def hop(handler: BaseHTTPRequestHandler) -> None:
        left = int(handler.path[1:])
        if left:
            answer(b"", 302, Location=f"/{left - 1}")(handler)
        else:
            answer(b"there")(handler)

    server.say(hop)
    assert out.fetch(server.url("/3"), max_bytes=10) == b"there"
    with pytest.raises(InputRejected, match="redirects"):
        out.fetch(server.url("/4"), max_bytes=10)


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/",
        "http://127.0.0.1:1/",
        "http://localhost/",
        "http://[::1]/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "http://user@example.com/",
        "http://metadata.google.internal/",
        "//169.254.169.254/latest",
        "http://[",
        "//[::1",
        "http://[::1]x/",
        "http://example.com:99999/",
    ],
)
def test_a_redirect_to_anything_inside_is_refused(server, out, location):
    server.say(answer(b"", 302, Location=location))
    with pytest.raises(InputRejected):
        out.fetch(server.url(), max_bytes=10)
    assert len(server.seen) == 1


def test_a_redirect_is_followed_only_where_the_caller_lets_it(server, out, tmp_path):
    def lead(handler: BaseHTTPRequestHandler) -> None:
        there = handler.path == "/there"
        say = answer(b"hello") if there else answer(b"", 302, Location="/there")
        say(handler)

    here, target = f"127.0.0.1:{server.port}", tmp_path / "file"
    for allowed in (True, False):
        server.say(lead)
        asked: list[str] = []

        def may(host: str, *, answer: bool = allowed, seen: list[str] = asked) -> bool:
            seen.append(host)
            return answer

        if allowed:
            assert out.fetch_to(server.url("/"), target, max_bytes=5, may_lead_to=may)
        else:
            with pytest.raises(InputRejected, match="host that is not allowed"):
                out.fetch_to(server.url("/"), target, max_bytes=5, may_lead_to=may)
        assert asked == [here]


def test_a_redirect_to_nowhere_ends(server, out):
    server.say(answer(b"", 302))
    with pytest.raises(InputRejected):
        out.fetch(server.url(), max_bytes=10)


def test_a_webhook_is_posted_once_and_its_answer_cut_to_a_kilobyte(server, out):
    server.say(answer(b"y" * 10_000_000, X_Note="thanks"))
    reply = out.post(server.url("/hook"), b'{"a":1}', {"webhook-id": "msg_1"})
    assert reply.status == 200
    assert reply.body == b"y" * 1024
    assert reply.headers["x-note"] == "thanks"
    (seen,) = server.seen
    assert seen["webhook-id"] == "msg_1"
    assert seen["content-type"] == "application/json"
    assert seen["content-length"] == "7"


@pytest.mark.parametrize("status", [301, 302, 307, 410, 500])
def test_a_webhook_s_answer_is_given_as_it_is(server, out, status):
    server.say(answer(b"", status, Location="http://10.0.0.1/"))
    assert out.post(server.url(), b"", {}).status == status
    assert len(server.seen) == 1


def test_a_webhook_receiver_that_hangs_is_left(server, out):
    over = threading.Event()
    server.say(lambda handler: over.wait(10) and None)
    started = time.monotonic()
    with pytest.raises(FetchFailed, match="in time"):
        out.post(server.url(), b"{}", {}, timeout_seconds=0.3)
    assert time.monotonic() - started < 3
    over.set()


@pytest.mark.parametrize(
    "headers",
    [{"x-a": "b\r\nEvil: 1"}, {"x-a\r\n": "b"}, {"x a": "b"}, {"x-a": "b\0"}],
)
def test_a_header_that_would_smuggle_another_is_never_sent(server, out, headers):
    with pytest.raises(ValueError, match="malformed"):
        out.post(server.url(), b"{}", headers)
    assert server.seen == []


def test_tls_is_made_with_the_name_at_the_address_checked(tmp_path, monkeypatch):
    server_side, client_side = certificate(tmp_path, "photos.example")
    secure = Server(server_side)
    names: list[str | None] = []
    server_side.sni_callback = lambda _socket, name, _context: names.append(name)
    names_asked = Names(["127.0.0.1"])
    place = f"photos.example:{secure.port}"
    try:
        out = Egress([place], resolver=names_asked, ssl_context=client_side)
        assert out.fetch(f"https://{place}/", max_bytes=10) == b"hello"
        assert names == ["photos.example"]
        assert secure.seen[0]["host"] == place
        other = f"other.example:{secure.port}"
        strict = Egress([other], resolver=names_asked, ssl_context=client_side)
        with pytest.raises(FetchFailed, match="certificate"):
            strict.fetch(f"https://{other}/", max_bytes=10)
    finally:
        secure.http.shutdown()
        secure.http.server_close()


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's TLS context that trust each other for ``name``."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(pem)
    return server_side, ssl.create_default_context(cafile=str(pem))


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.text(max_size=60)
    | st.builds(
        "{}://{}{}{}".format,
        st.sampled_from(["http", "https", "HTTP", "ftp", ""]),
        st.text(max_size=30),
        st.sampled_from(["", ":80", ":443", ":x", ":٣"]),
        st.text(max_size=30),
    )
)
def test_no_text_breaks_the_check_and_what_passes_stays_as_it_is(url):
    try:
        target = check_url(url, allow_hosts=())
    except InputRejected:
        return
    assert str(target).isascii()
    assert check_url(str(target), allow_hosts=()) == target
