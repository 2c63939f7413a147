"""The real program, over a real socket."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from inventory_api import HEALTH_TIMEOUT, reap
from tests.api.conftest import running

Run = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server on SQLite with its sample products."""
    with running(cwd=tmp_path_factory.mktemp("server"), env={"RATE_LIMIT": "0"}) as (url, _):
        yield url


def raw(base: str, *parts: bytes) -> bytes:
    """All that the server sends back on one connection."""
    address = urlsplit(base)
    with socket.create_connection((address.hostname, address.port or 80), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while data := connection.recv(65536):
            received += data
    return received


def test_it_starts_with_a_thousand_sample_products(base: str) -> None:
    page = requests.get(f"{base}/products?include_total=true&limit=1", timeout=5).json()
    assert page["total"] == 1000


def test_a_walk_over_the_wire(base: str) -> None:
    url, seen = f"{base}/products/search?name=oak&limit=30", []
    with requests.Session() as session:
        while url:
            response = session.get(url, timeout=5)
            seen += [item["name"] for item in response.json()["items"]]
            url = response.links.get("next", {}).get("url", "")
            url = requests.compat.urljoin(response.url, url) if url else ""
    assert len(seen) == 100
    assert all("oak" in name.lower() for name in seen)


def test_a_change_over_the_wire(base: str) -> None:
    etag = requests.get(f"{base}/products/5", timeout=5).headers["ETag"]
    changed = requests.patch(f"{base}/products/5", json={"price": "1.50"}, headers={"If-Match": etag}, timeout=5)
    assert (changed.status_code, changed.json()["price"]) == (200, "1.50")
    lost = requests.patch(f"{base}/products/5", json={"price": "2"}, headers={"If-Match": etag}, timeout=5)
    assert (lost.status_code, lost.headers["ETag"]) == (412, changed.headers["ETag"])


def test_a_chunked_body_is_read(base: str) -> None:
    answer = raw(
        base,
        b"PATCH /products/6 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"pri\r\n8\r\nce": 33}\r\n0\r\n\r\n',
    )
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"price":"33.00"' in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /products/1 HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 300_000 + b"\r\n\r\n", 431),
        (b"PATCH /products/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n", 413),
        (b"PATCH /products/1 HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n", 400),
        (b"GET /products/1 HTTP/1.1\r\nHost: x\r\nno colon here\r\n\r\n", 400),
        (b"GET /products/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"get /products/1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
def test_what_waitress_refuses_is_a_problem_document_too(base: str, request_bytes: bytes, status: int) -> None:
    head, _, body = raw(base, request_bytes).partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == str(status).encode()
    for header in (
        b"Content-Type: application/problem+json",
        b"Cache-Control: no-store",
        b"X-Content-Type-Options: nosniff",
    ):
        assert header in head
    assert b"X-Request-Id: " in head
    assert f'"status": {status}'.encode() in body


def test_a_refusal_reaches_a_client_that_is_still_sending(base: str) -> None:
    response = requests.patch(f"{base}/products/1", data=b"x" * 5_000_000, timeout=10)
    assert (response.status_code, response.headers["Content-Type"]) == (413, "application/problem+json")


def test_a_body_between_the_two_limits_is_a_413_of_the_app(base: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = requests.patch(f"{base}/products/1", data=b" " * 100_000, headers=headers, timeout=5)
    assert (response.status_code, response.headers["Content-Type"]) == (413, "application/problem+json")


def test_one_connection_serves_many_requests(base: str) -> None:
    request = b"GET /products/1 HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"HEAD /products/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = raw(base, request * 3 + last)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.count(b'{"id":1,') == 3


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_told_with_exit_code_0(tmp_path: Path, how: signal.Signals) -> None:
    with running(cwd=tmp_path, stop=how) as (base, process):
        assert process.stdout is not None
        assert process.stdout.readline() == f"try: curl {base}/products/7\n"
        requests.get(f"{base}/products/7", timeout=5)
    assert process.returncode == 0


def test_a_second_start_adds_no_samples(tmp_path: Path) -> None:
    for _ in range(2):
        with running(cwd=tmp_path) as (base, _):
            assert requests.get(f"{base}/products?include_total=true", timeout=5).json()["total"] == 1000


def test_a_database_that_is_named_gets_no_samples(tmp_path: Path) -> None:
    with running("--database-url", "sqlite:///inventory.db", cwd=tmp_path) as (base, _):
        assert requests.get(f"{base}/products", timeout=5).json()["items"] == []


def test_each_request_is_logged_unless_the_level_is_higher(tmp_path: Path) -> None:
    for level, expected in (("INFO", 1), ("WARNING", 0)):
        with running(cwd=tmp_path, env={"LOG_LEVEL": level}) as (base, process):
            requests.get(f"{base}/products/7", timeout=5)
            process.terminate()
            assert process.stderr is not None
            assert process.stderr.read().count("path=/products/7 status=200") == expected


def test_a_port_in_use_is_told_in_one_line(base: str, run_program: Run) -> None:
    result = run_program("--port", str(urlsplit(base).port))
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "cannot listen" in result.stderr


HOST = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
MAX_HEADERS, MAX_BODY = 256 * 1024, 1024 * 1024
OVERSIZED = b"%s /products/1 HTTP/1.1\r\n" + HOST + b"X-Request-ID: mine\r\nContent-Length: 2000000\r\n\r\n"


def exchange(base: str, sent: bytes) -> bytes:
    """All that the server answers until it closes the connection."""
    address = urlsplit(base)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers in lower case and the body of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.decode("latin-1").split("\r\n")
    return int(status.split()[1]), {k.lower(): v for k, v in (header.split(": ", 1) for header in headers)}, body


def padded_to(size: int, start: bytes) -> bytes:
    return start + b"a" * (size - len(start))


REFUSED: list[tuple[str, bytes, int]] = [
    ("headers too large", padded_to(MAX_HEADERS, b"GET / HTTP/1.1\r\n" + HOST + b"X: "), 431),
    ("body over 1 MiB", b"PATCH /products/1 HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 1048577\r\n\r\n", 413),
    (
        "body far over",
        b"PATCH /products/1 HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 99999999999999999999\r\n\r\n",
        413,
    ),
    (
        "chunks over 1 MiB",
        b"PATCH /products/1 HTTP/1.1\r\n"
        + HOST
        + JSON
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + padded_to(MAX_BODY, b"200000\r\n"),
        413,
    ),
    ("length with a sign", b"PATCH /products/1 HTTP/1.1\r\n" + HOST + b"Content-Length: +5\r\n\r\n", 400),
    ("length with an underscore", b"PATCH /products/1 HTTP/1.1\r\n" + HOST + b"Content-Length: 1_0\r\n\r\n", 400),
    ("negative length", b"PATCH /products/1 HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
    ("no length", b"PATCH /products/1 HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\n", 400),
    ("two lengths", b"PATCH /products/1 HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    ("gzip transfer", b"PATCH /products/1 HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    ("gzip, chunked", b"PATCH /products/1 HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ("bad chunk", b"PATCH /products/1 HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ("no colon", b"GET / HTTP/1.1\r\n" + HOST + b"nonsense\r\n\r\n", 400),
    ("space in a name", b"GET / HTTP/1.1\r\n" + HOST + b"Bad Name: x\r\n\r\n", 400),
    ("bare line feed", b"GET / HTTP/1.1\r\n" + HOST + b"X: a\nb\r\n\r\n", 400),
    ("no path", b"GET\r\n\r\n", 400),
    ("lower case method", b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    ("handshake of TLS", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    ("bytes in a path", b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
]


@pytest.mark.parametrize(("sent", "expected"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_waitress_refuses_is_a_problem_document(base: str, sent: bytes, expected: int) -> None:
    status, headers, body = parsed(exchange(base, sent))
    problem = json.loads(body)
    assert status == problem["status"] == expected
    assert headers["content-type"] == "application/problem+json"
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-request-id"] == problem["request_id"]
    assert int(headers["content-length"]) == len(body)
    assert problem.keys() >= {"type", "title", "status", "detail", "instance", "request_id"}
    assert "waitress" not in body.decode().lower()
    assert requests.get(f"{base}/healthz", timeout=10).status_code == 200


def test_a_refused_body_keeps_the_clients_request_id(base: str) -> None:
    _, headers, body = parsed(exchange(base, OVERSIZED % b"PATCH"))
    assert (headers["x-request-id"], json.loads(body)["request_id"]) == ("mine", "mine")


def test_a_refusal_tells_its_instance(base: str) -> None:
    assert json.loads(parsed(exchange(base, OVERSIZED % b"PATCH"))[2])["instance"] == "/products/1"


def test_a_refused_head_has_no_body(base: str) -> None:
    status, _, body = parsed(exchange(base, OVERSIZED % b"HEAD"))
    assert (status, body) == (413, b"")


def test_a_refusal_has_its_line_in_the_log_too(tmp_path: Path) -> None:
    with running(cwd=tmp_path) as (url, process):
        exchange(url, OVERSIZED % b"PATCH")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    (line,) = err.splitlines()
    assert re.search(r" method=PATCH path=/products/1 status=413 ms=[0-9.]+ request_id=mine client=127\.0\.0\.1$", line)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (chunked(b'{"stock_', b'level": 5}'), 200),
        (chunked(b'{"stock_level": 5}', b" " * (16 * 1024 - 18)), 200),
        (chunked(b'{"stock_level": 5}', b" " * (16 * 1024 - 17)), 413),
        (chunked(b" " * 500_000), 413),
        (chunked(b"{"), 400),
        (chunked(), 400),
    ],
)
def test_a_chunked_body_is_a_body_like_any_other(base: str, body: bytes, expected: int) -> None:
    head = b"PATCH /products/2 HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n" + HOST + JSON
    status, headers, _ = parsed(exchange(base, head + b"\r\n" + body))
    assert status == expected
    assert headers["content-type"] == ("application/json" if expected == 200 else "application/problem+json")


def test_pipelined_requests_are_answered_in_order(base: str) -> None:
    ids = [b"one", b"two", b"three"]
    sent = b"".join(
        b"GET /products/%d HTTP/1.1\r\nX-Request-ID: %s\r\n%s\r\n" % (n, id, HOST) for n, id in enumerate(ids, 1)
    )
    answer = exchange(
        base, sent + b"GET /healthz HTTP/1.1\r\nConnection: close\r\nX-Request-ID: end\r\n" + HOST + b"\r\n"
    )
    assert re.findall(rb"(?i)x-request-id: (\w+)", answer) == [*ids, b"end"]


def test_raw_bytes_in_a_query_are_no_server_error(base: str) -> None:
    for query in (b"limit=\xff", b"limit=%ff", b"limit=1%00", b"\xff=1", b"cursor=%F0%9F", b"limit=1#frag"):
        answer = exchange(base, b"GET /products?" + query + b" HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
        assert parsed(answer)[0] == (200 if b"#" in query else 400)


def test_a_slow_sender_holds_up_nobody(base: str) -> None:
    address = urlsplit(base)
    slow = [socket.create_connection((address.hostname or "", address.port or 0)) for _ in range(40)]
    for connection in slow:
        connection.sendall(b"PATCH /products/1 HTTP/1.1\r\nContent-Length: 100\r\n" + HOST + JSON + b"\r\n{")
    began = time.monotonic()
    assert requests.get(f"{base}/products/5", timeout=10).status_code == 200
    assert time.monotonic() - began < 5
    for connection in slow:
        connection.close()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_told_to_and_says_all_is_well(tmp_path: Path, stop: signal.Signals) -> None:
    with running(cwd=tmp_path, stop=stop) as (url, process), requests.Session() as session:
        assert session.get(f"{url}/products/1", timeout=10).status_code == 200  # and the connection stays open
        process.send_signal(stop)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in err


def test_it_prints_where_it_is_and_what_to_try(tmp_path: Path) -> None:
    with running("--host", "127.0.0.1", cwd=tmp_path) as (url, process):
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+", url)
        assert process.stdout is not None
        second = process.stdout.readline()
        assert re.fullmatch(rf"try: curl {re.escape(url)}/\S+\n", second)
        assert requests.get(second.split()[-1], timeout=10).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == ""


def test_an_ipv6_host_is_printed_as_a_url_needs_it(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with running("--host", "::1", cwd=tmp_path) as (url, _):
        assert url.startswith("http://[::1]:")
        assert requests.get(f"{url}/healthz", timeout=10).status_code == 200
        changed = requests.patch(f"{url}/products/1", json={"stock_delta": 1}, timeout=10)
        assert changed.status_code == 200


@pytest.mark.parametrize("level", ["WARNING", "ERROR"])
def test_a_higher_log_level_silences_the_requests(tmp_path: Path, level: str) -> None:
    with running(cwd=tmp_path, env={"LOG_LEVEL": level}) as (url, process):
        for path in ("/products/1", "/nowhere"):
            requests.get(f"{url}{path}", timeout=10)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert err == ""


def test_the_trusted_proxys_word_arrives_over_a_socket(tmp_path: Path) -> None:
    env = {"TRUSTED_PROXY": "127.0.0.1", "RATE_LIMIT": "0.001", "RATE_BURST": "5"}
    with running(cwd=tmp_path, env=env) as (url, process):
        for client in ("10.0.0.1", "10.0.0.2"):
            answered = requests.get(f"{url}/products", headers={"X-Forwarded-For": f"1.2.3.4, {client}"}, timeout=10)
            assert answered.headers["RateLimit"].startswith('"default";r=3;')
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
    assert [line.rsplit("client=")[1] for line in err.splitlines()] == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "localhost"])
def test_the_health_check_finds_the_server_at_its_own_settings(tmp_path: Path, run_program: Run, host: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with running("--host", host, cwd=tmp_path) as (url, _):
        port = url.rsplit(":", 1)[1]
        checked = run_program("--check-health", HOST=host, PORT=port, http_proxy="http://127.0.0.1:1")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    checked = run_program("--check-health", HOST=host, PORT=port)
    assert (checked.returncode, checked.stdout, len(checked.stderr.splitlines())) == (1, "", 1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"), (b"what?\r\n\r\n", "what?"), (b"", "no answer")],
)
def test_the_health_check_fails_on_anything_but_a_200(run_program: Run, answer: bytes, said: str) -> None:
    def answer_one() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_one)
        thread.start()
        checked = run_program("--check-health", PORT=str(listener.getsockname()[1]))
        thread.join()
    assert (checked.returncode, len(checked.stderr.splitlines())) == (1, 1)
    assert said in checked.stderr


def test_the_health_check_gives_up_on_a_server_that_says_nothing(run_program: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        checked = run_program("--check-health", PORT=str(silent.getsockname()[1]))
    assert (checked.returncode, len(checked.stderr.splitlines())) == (1, 1)
    assert time.monotonic() - began < HEALTH_TIMEOUT + 2


def test_the_health_check_makes_no_database(run_program: Run, tmp_path: Path) -> None:
    run_program("--check-health", PORT="1")
    assert list(tmp_path.iterdir()) == []
    assert run_program("--check-health", "--load", "products.csv").returncode == 2


def test_a_supervisor_is_not_put_out_by_the_end_of_another_programs_process() -> None:
    """The first process of a container inherits every orphan there."""
    ours, orphan = subprocess.Popen(["true"]), subprocess.Popen(["true"])
    running_now = {ours.pid: 1}
    os.waitid(os.P_PID, ours.pid, os.WEXITED | os.WNOWAIT)
    os.waitid(os.P_PID, orphan.pid, os.WEXITED | os.WNOWAIT)
    assert reap(running_now) == {1}
    assert running_now == {}
    ours.wait()
    orphan.wait()
