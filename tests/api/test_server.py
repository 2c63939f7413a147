"""The real program, over a real socket."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

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
