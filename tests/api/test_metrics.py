"""What /metrics tells: a text that every scraper reads, series that no client can multiply, and numbers that move."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

import inventory_api
from inventory_api import BUCKETS, METRICS, Monitor
from tests.api.conftest import Service, Wire, one_engine, request, serving, until

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
SAMPLE = re.compile(rf"({NAME})\{{({LABEL}(?:,{LABEL})*)\}} ([0-9.e+-]+)")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


class Sample(NamedTuple):
    labels: dict[str, str]
    value: float


def parse(text: str) -> dict[str, list[Sample]]:
    """The samples by name, of a text that keeps to every rule of the format; prefix and process are left out."""
    assert text.endswith("\n")
    found: dict[str, list[Sample]] = {}
    kinds: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("#"):
            told = re.fullmatch(rf"# HELP ({NAME}) [^\\]+", line)
            typed = re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge|histogram)", next(lines))
            assert told, line
            assert typed, line
            assert told[1] == typed[1]
            assert told[1] not in kinds, "told twice"
            kinds[metric := told[1]] = typed[2]
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        assert sample[1] in [metric + suffix for suffix in SUFFIXES[kinds[metric]]], "under another's heading"
        labels = dict(pair.split("=", 1) for pair in re.findall(LABEL, sample[2]))
        assert labels.pop("process") == '"1"'
        series = found.setdefault(sample[1].removeprefix("inventory_"), [])
        assert labels not in [other.labels for other in series], "the same series twice"
        series.append(Sample({name: value[1:-1] for name, value in labels.items()}, float(sample[3])))
    for metric, kind in kinds.items():
        assert metric.endswith("_total") == (kind == "counter")
    return found


def scrape(service: Service) -> dict[str, list[Sample]]:
    return parse(service.get("/metrics").text)


def value(found: dict[str, list[Sample]], name: str, **labels: str) -> float:
    return sum(sample.value for sample in found.get(name, []) if labels.items() <= sample.labels.items())


def test_the_text_keeps_to_the_format_and_tells_every_metric(desks: Service) -> None:
    assert parse(desks.get("/metrics").text)  # before anything was counted
    for path in ("/products/1", "/products", "/nowhere", "/products/9", "/products/x"):
        desks.get(path)
    with serving(desks) as server, Wire(server) as wire:
        wire.get("/products/1")
        answer = wire.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        head = wire.get("/metrics", method="HEAD")
        assert (head.status, head.body, head.headers["content-type"]) == (200, b"", answer.headers["content-type"])
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in parse(answer.body.decode())}
    assert names == METRICS.keys() - ({"listener_up"} if desks.database.dialect == "sqlite" else set())


@one_engine
def test_it_takes_no_parameters_and_costs_no_tokens(desks: Service) -> None:
    desks.restart(rate_limit=1.0, rate_burst=5)
    for _ in range(10):
        assert desks.get("/metrics").status_code == 200
    assert desks.get("/metrics", "x=1").status_code == 400


@one_engine
def test_buckets_are_cumulative_and_the_last_has_them_all(service: Service) -> None:
    lines: list[str] = []
    monitor = Monitor(lines.append)
    spent = (0.0, 0.0005, 0.00051, 0.3, 10.0, 10.1, 3600.0)
    for seconds in spent:
        monitor.record("GET", "/x", 200, seconds, "id", "client", "/x")
    found = parse(monitor.text())
    buckets = [(sample.labels["le"], sample.value) for sample in found["request_seconds_bucket"]]
    assert [bound for bound, _ in buckets] == [*map(str, BUCKETS), "+Inf"]
    for bound, count in buckets:
        assert count == sum(seconds <= float(bound) for seconds in spent)
    assert value(found, "request_seconds_count") == len(lines) == len(spent)
    assert value(found, "request_seconds_sum") == pytest.approx(sum(spent))


@one_engine
def test_no_client_makes_series_whatever_it_sends(desks: Service) -> None:
    with serving(desks) as server:
        for number in range(30):
            for line in (
                f"GET /products/{number}",
                f"GET /nowhere/{number}",
                f"BREW{number} /products/1",
                f'X"{{}}\\{number} /products/1'.replace("{}", ""),
                f"GET /%22%0A{number}",
                f"WEBSOCKET /{number}",
                f"GET http://elsewhere{number}/products/1",
            ):
                with Wire(server) as wire:
                    wire.send(f"{line} HTTP/1.1\r\nConnection: close\r\nX-Request-ID: {number}\r\n\r\n")
                    assert wire.reply()
        with Wire(server) as wire:
            found = parse(wire.get("/metrics").body.decode())
    routes = {"", "/products/{id}"}
    assert {sample.labels["route"] for sample in found["requests_total"]} == routes
    assert {sample.labels["method"] for sample in found["requests_total"]} == {"GET", "other", "WEBSOCKET"}
    assert value(found, "requests_total") == 7 * 30
    assert len(found["requests_total"]) < 10


@one_engine
def test_each_answer_is_counted_under_its_route_method_and_status(desks: Service) -> None:
    desks.restart(rate_limit=1.0, rate_burst=10)
    desks.get("/products/1")
    desks.get("/products/2", If_None_Match="*")
    desks.request("HEAD", "/products")
    desks.patch(1, "{}")
    desks.get("/products/search", "name=a")
    desks.get("/healthz")
    desks.get("/nowhere")
    found = scrape(desks)
    counted = {tuple(sample.labels.values()): sample.value for sample in found["requests_total"]}
    assert counted == {
        ("/products/{id}", "GET", "200"): 1,
        ("/products/{id}", "GET", "304"): 1,
        ("/products", "HEAD", "200"): 1,
        ("/products/{id}", "PATCH", "422"): 1,
        ("/products/search", "GET", "429"): 1,
        ("/healthz", "GET", "200"): 1,
        ("", "GET", "404"): 1,
    }
    assert value(found, "rate_limited_total") == 1
    for route in {sample.labels["route"] for sample in found["requests_total"]}:
        assert value(found, "request_seconds_count", route=route) == value(found, "requests_total", route=route)


def test_the_cache_tells_hits_misses_evictions_and_invalidations(desks: Service) -> None:
    desks.restart(cache_size=2)
    for product in (1, 1, 2, 3):
        desks.get(f"/products/{product}")
    found = scrape(desks)
    told = [value(found, f"cache_{name}_total") for name in ("hits", "misses", "evictions")]
    assert told == [1, 3, 1]
    before = value(found, "cache_invalidations_total")
    desks.patch(1, '{"price": 1}')
    assert value(scrape(desks), "cache_invalidations_total") > before


def test_an_answer_that_was_overtaken_by_a_change_is_told(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    read, begun, go = desks.database.read, threading.Event(), threading.Event()

    def slow(work: object) -> object:
        found = read(work)  # type: ignore[arg-type, var-annotated]
        begun.set()
        assert go.wait(20)
        return found

    monkeypatch.setattr(desks.database, "read", slow)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(desks.get, "/products/1")
        assert begun.wait(10)
        desks.patch(1, '{"price": 1}')
        go.set()
        assert reader.result(10).status_code == 200
    assert value(scrape(desks), "cache_refused_fills_total") == 1


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_lost_connection_is_told_and_that_there_is_another(desks: Service) -> None:
    desks.get("/products/1")
    before = scrape(desks)
    desks.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert desks.get("/products/2").status_code == 200
    after = scrape(desks)
    for name in ("database_errors_total", "database_reconnects_total"):
        assert value(after, name) == value(before, name) + 1


@pytest.mark.parametrize("engine", ["postgresql"])
def test_the_listener_tells_whether_it_hears(desks: Service) -> None:
    assert value(scrape(desks), "listener_up") == 0
    desks.database.listen()
    until(lambda: value(scrape(desks), "listener_up") == 1)


@one_engine
def test_what_has_a_thread_and_what_waits_for_one_is_told(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(desks.database, "has_news", lambda: not go.wait(20))
    with serving(desks, threads=2) as server:
        with Wire(server) as idle:
            found = parse(idle.get("/metrics").body.decode())
        assert (value(found, "in_flight"), value(found, "queue_depth")) == (1, 0)  # the one that asks
        wires = [Wire(server) for _ in range(5)]
        for wire in wires:
            wire.send(request("/products/1"))

        def told() -> tuple[float, float]:
            found = parse(server.monitor.text())
            return value(found, "in_flight"), value(found, "queue_depth")

        until(lambda: told() == (2, 3))
        go.set()
        for wire in wires:
            with wire:
                assert wire.reply()


@one_engine
def test_what_is_refused_before_the_app_is_asked_is_counted_too(
    desks: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(desks) as server:
        monkeypatch.setattr(inventory_api, "QUEUE_TIMEOUT", -1)
        for sent in (request("/products/1"), "GET / HTTP/1.1\r\nno colon\r\n\r\n"):
            with Wire(server) as wire:
                wire.send(sent)
                assert wire.reply()
        found = parse(server.monitor.text())
    assert {sample.labels["status"]: sample.value for sample in found["requests_total"]} == {"503": 1, "400": 1}


def test_nothing_is_lost_when_many_threads_count_at_once() -> None:
    monitor = Monitor()

    def count(number: int) -> None:
        for _ in range(500):
            monitor.record("GET", "/", 200 + number, 0.001, "id", "client", f"/{number % 2}")
            if number == 0:
                parse(monitor.text())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    found = parse(monitor.text())
    assert value(found, "requests_total") == value(found, "request_seconds_count") == 4000
