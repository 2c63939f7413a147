"""Who may come in: token buckets, API key, proxies."""

from __future__ import annotations

import math
import tracemalloc

import pytest

from inventory_api import RateLimiter
from tests.api.conftest import FakeClock, Service, one_engine


@pytest.fixture
def limited(desks: Service) -> Service:
    desks.restart(rate_limit=100.0, rate_burst=200)
    return desks


@pytest.mark.parametrize(
    ("method", "path", "query", "cost"),
    [
        ("GET", "/products/1", "", 1),
        ("HEAD", "/products/1", "", 1),
        ("GET", "/products/99", "", 1),
        ("GET", "/products/x", "", 1),
        ("GET", "/products", "", 2),
        ("GET", "/products", "limit=x", 2),
        ("GET", "/products/search", "name=a", 5),
        ("PATCH", "/products/1", "", 5),
    ],
)
@one_engine
def test_each_route_costs_what_it_costs_whatever_the_answer(
    limited: Service, method: str, path: str, query: str, cost: int
) -> None:
    result = limited.request(method, path, query)
    assert result.headers["RateLimit-Policy"] == '"default";q=200;w=2'
    assert result.headers["RateLimit"] == f'"default";r={200 - cost};t=1'


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("OPTIONS", "/products"),
        ("POST", "/products"),
        ("GET", "/nope"),
    ],
)
@one_engine
def test_everything_else_is_free(limited: Service, method: str, path: str) -> None:
    result = limited.request(method, path)
    assert not {"ratelimit", "ratelimit-policy"} & set(result.headers)


@one_engine
def test_an_empty_bucket_is_a_429_that_says_when_to_come_back(limited: Service) -> None:
    for _ in range(40):
        assert limited.get("/products/search", "name=a").status_code == 200
    refused = limited.get("/products/search", "name=a")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert refused.headers["RateLimit"] == '"default";r=0;t=2'
    assert refused.headers["Content-Type"] == "application/problem+json"
    limited.clock.tick(0.049)
    assert limited.get("/products/search", "name=a").status_code == 429
    limited.clock.tick(0.002)
    assert limited.get("/products/search", "name=a").status_code == 200


@one_engine
def test_a_refused_request_takes_no_tokens(limited: Service) -> None:
    for _ in range(40):
        limited.get("/products/search", "name=a")
    for _ in range(10):
        limited.get("/products/search", "name=a")
    limited.clock.tick(0.051)
    assert limited.get("/products/search", "name=a").status_code == 200


@one_engine
def test_retry_after_is_long_enough(desks: Service) -> None:
    desks.restart(rate_limit=0.5, rate_burst=5)
    assert desks.patch(1, '{"price": 1}').status_code == 200
    refused = desks.patch(1, '{"price": 1}')
    assert refused.headers["Retry-After"] == "10"
    desks.clock.tick(9.9)
    assert desks.patch(1, '{"price": 1}').status_code == 429
    desks.clock.tick(0.1)
    assert desks.patch(1, '{"price": 1}').status_code == 200


@one_engine
def test_a_bucket_never_holds_more_than_the_burst(limited: Service) -> None:
    limited.get("/products/1")
    limited.clock.tick(3600)
    assert limited.get("/products/1").headers["RateLimit"] == '"default";r=199;t=1'


@one_engine
def test_clients_do_not_share_a_bucket(limited: Service) -> None:
    limited.get("/products")
    limited.address = "192.0.2.1"
    assert limited.get("/products").headers["RateLimit"] == '"default";r=198;t=1'


@one_engine
def test_off_means_no_limit_and_no_headers(desks: Service) -> None:
    for _ in range(50):
        result = desks.get("/products/search", "name=a")
    assert result.status_code == 200
    assert "RateLimit" not in result.headers


def test_no_more_buckets_are_kept_than_clients_allowed() -> None:
    clock = FakeClock()
    limiter = RateLimiter(1.0, 5, clock, clients=3)
    for client in "abcd":
        limiter.take(client, 5)
    assert len(limiter._buckets) == 3
    assert limiter.take("d", 1).retry_after == 1
    assert limiter.take("a", 5).retry_after == 0  # forgotten, so full again


@one_engine
def test_forwarded_for_is_not_believed(limited: Service) -> None:
    limited.get("/products")
    again = limited.get("/products", X_Forwarded_For="192.0.2.9")
    assert again.headers["RateLimit"] == '"default";r=196;t=1'
    assert "client=127.0.0.1" in limited.lines[-1]


@pytest.mark.parametrize("proxy", ["127.0.0.1", "*"])
@one_engine
def test_a_trusted_proxy_tells_the_client(desks: Service, proxy: str) -> None:
    desks.restart(trusted_proxy=proxy, rate_limit=100.0)
    desks.get("/products", X_Forwarded_For="10.0.0.1, 192.0.2.9")
    assert desks.lines[-1].endswith("client=192.0.2.9\n")
    assert desks.get("/products", X_Forwarded_For="192.0.2.8").headers["RateLimit"] == '"default";r=198;t=1'


@one_engine
def test_another_proxy_is_not_trusted(desks: Service) -> None:
    desks.restart(trusted_proxy="192.0.2.1")
    desks.get("/products", X_Forwarded_For="192.0.2.9")
    assert desks.lines[-1].endswith("client=127.0.0.1\n")


@pytest.mark.parametrize("header", ['"', '"x, 1.2.3.4', ":8.0", '1.2.3.4, "'])
@one_engine
def test_a_malformed_forwarded_for_is_a_400(desks: Service, header: str) -> None:
    desks.restart(trusted_proxy="*")
    result = desks.get("/products/1", X_Forwarded_For=header)
    assert (result.status_code, result.headers["Content-Type"]) == (400, "application/problem+json")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
@one_engine
def test_on_loopback_writes_need_no_key(desks: Service, host: str) -> None:
    desks.restart(host=host)
    assert desks.patch(1, '{"price": 1}').status_code == 200


@pytest.mark.parametrize(
    "settings", [{"host": "0.0.0.0"}, {"host": "::"}, {"host": "example.org"}, {"trusted_proxy": "10.0.0.1"}]
)
@one_engine
def test_elsewhere_writes_are_off_without_a_key(desks: Service, settings: dict[str, str]) -> None:
    desks.restart(**settings)
    result = desks.patch(1, '{"price": 1}', Authorization="Bearer x")
    assert (result.status_code, "API_KEY" in result.json["detail"]) == (403, True)
    assert desks.get("/products/1").status_code == 200
    desks.restart(**settings, api_key="key")
    assert desks.patch(1, '{"price": 1}', Authorization="Bearer key").status_code == 200


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer key2", "Basic key", "key", "Bearer k\xe9y"]
)
@one_engine
def test_a_write_without_the_right_key_is_a_401(desks: Service, header: str | None) -> None:
    desks.restart(api_key="key")
    result = desks.patch(1, '{"price": 1}', **({} if header is None else {"Authorization": header}))
    assert (result.status_code, result.headers["WWW-Authenticate"]) == (401, 'Bearer realm="inventory"')
    assert desks.get("/products/1").json["version"] == 1


@pytest.mark.parametrize("header", ["Bearer key", "bearer key", "BEARER  key"])
@one_engine
def test_the_scheme_is_read_in_any_case(desks: Service, header: str) -> None:
    desks.restart(api_key="key")
    assert desks.patch(1, '{"price": 1}', Authorization=header).status_code == 200


@one_engine
@pytest.mark.parametrize(
    ("cached", "header"), [("HIT", {}), ("HIT", {"If_None_Match": "*"}), ("MISS", {"Cache_Control": "no-cache"})]
)
def test_what_the_cache_saves_is_not_the_clients(desks: Service, cached: str, header: dict[str, str]) -> None:
    desks.restart(rate_limit=100.0)
    desks.get("/products/1")
    answered = desks.get("/products/1", **header)
    assert (answered.headers["x-cache"], answered.headers["ratelimit"]) == (cached, '"default";r=198;t=1')


@one_engine
@pytest.mark.parametrize(
    ("rate", "burst", "policy"),
    [
        (100.0, 200, '"default";q=200;w=2'),
        (3.0, 10, '"default";q=10;w=4'),
        (1000.0, 5, '"default";q=5;w=1'),
        (0.5, 5, '"default";q=5;w=10'),
    ],
)
def test_the_policy_tells_the_quota_and_its_window(desks: Service, rate: float, burst: int, policy: str) -> None:
    desks.restart(rate_limit=rate, rate_burst=burst)
    assert desks.get("/products/1").headers["ratelimit-policy"] == policy


@one_engine
def test_who_waits_as_long_as_told_is_served(desks: Service) -> None:
    desks.restart(rate_limit=2.0, rate_burst=10)
    while (answered := desks.patch(1, '{"stock_delta": 0}')).status_code == 200:
        pass
    wait = int(answered.headers["retry-after"])
    desks.clock.tick(wait - 1)
    assert desks.patch(1, '{"stock_delta": 0}').status_code == 429
    desks.clock.tick(1)
    assert desks.patch(1, '{"stock_delta": 0}').status_code == 200


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.3, 1 / 3, 0.7, 1.0, 3.0, 7.0, 9.99, 33.3, 100.0, 1e6])
def test_the_wait_that_is_told_always_suffices_and_is_the_shortest(rate: float) -> None:
    clock = FakeClock()
    limiter = RateLimiter(rate, 7, clock)
    for step in range(200):
        clock.tick(step * 0.0137 / rate)
        grant = limiter.take("a", 5)
        if grant.retry_after:
            clock.tick(grant.retry_after - 1)
            assert grant.retry_after == 1 or limiter.take("a", 5).retry_after
            clock.tick(1)
            assert limiter.take("a", 5).retry_after == 0


@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0, 7.0, 100.0])
def test_the_limiter_never_grants_more_than_the_rate_and_one_burst(rate: float) -> None:
    clock = FakeClock()
    limiter = RateLimiter(rate, 20, clock)
    granted = 0
    for step in range(1000):
        cost = (1, 2, 5)[step % 3]
        granted += 0 if limiter.take("a", cost).retry_after else cost
        clock.tick(0.7 / rate)
    assert granted <= 20 + rate * (clock.now - 1000) + 1e-6
    assert granted > 0.9 * rate * (clock.now - 1000)


def test_a_limiter_remembers_no_more_clients_than_it_may() -> None:
    tracemalloc.start()
    try:
        limiter = RateLimiter(100.0, 200, FakeClock(), 100)
        for n in range(100):
            limiter.take(f"first-{n:08}", 1)
        full = tracemalloc.get_traced_memory()[0]
        for n in range(20_000):
            limiter.take(f"other-{n:08}", 1)
        assert tracemalloc.get_traced_memory()[0] < full * 1.5 + 20_000
    finally:
        tracemalloc.stop()


def test_the_client_longest_out_of_use_is_forgotten_first() -> None:
    limiter = RateLimiter(0.001, 5, FakeClock(), clients=2)
    for client in ("a", "b", "a", "c"):  # b is forgotten
        limiter.take(client, 5)
    assert limiter.take("a", 5).retry_after > 0
    assert limiter.take("b", 5).retry_after == 0


def test_a_grant_tells_whole_tokens_and_whole_seconds() -> None:
    clock = FakeClock()
    limiter = RateLimiter(100.0, 200, clock)
    limiter.take("a", 5)
    clock.tick(0.004)
    grant = limiter.take("a", 5)
    assert (grant.remaining, grant.reset, grant.retry_after) == (190, math.ceil(9.6 / 100), 0)


def remaining_for(service: Service, forwarded_for: str) -> int:
    answered = service.get("/products/1", X_Forwarded_For=forwarded_for)
    return int(answered.headers["ratelimit"].split("r=")[1].split(";")[0])


@one_engine
def test_of_several_hops_only_the_proxys_own_is_believed(desks: Service) -> None:
    desks.restart(rate_limit=1.0, rate_burst=10, trusted_proxy="127.0.0.1")
    assert [remaining_for(desks, f"1.2.3.{n}, 10.0.0.1") for n in (1, 2)] == [9, 8]
    assert desks.lines[-1].endswith(" client=10.0.0.1\n")


@one_engine
@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        ("10.0.0.1:4711", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
    ],
)
def test_a_port_or_brackets_make_no_other_client(desks: Service, forwarded_for: str, client: str) -> None:
    desks.restart(trusted_proxy="127.0.0.1")
    desks.get("/products/1", X_Forwarded_For=forwarded_for)
    assert desks.lines[-1].endswith(f" client={client}\n")


@one_engine
@pytest.mark.parametrize(
    "forwarded_for", ["", ",", ", ,", "unknown", "_hidden", "[", "]", "[::1", "::1:x", "x" * 10_000,
    "10.0.0.1\tstatus=200", "a b=c", "é", "\x1b[31m", "1.2.3.4:x"],
    ids=lambda text: ascii(text)[:20],
)  # fmt: skip
def test_no_forwarded_text_breaks_the_service_or_its_log(desks: Service, forwarded_for: str) -> None:
    desks.restart(rate_limit=1.0, rate_burst=10, trusted_proxy="127.0.0.1")
    assert desks.get("/products/1", X_Forwarded_For=forwarded_for).status_code in (200, 400)
    (line,) = desks.lines
    assert line[:-1].isprintable()
    assert line.isascii()
    assert len(line.split()) == 7
