"""Who may come in: token buckets, API key, proxies."""

from __future__ import annotations

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
