"""Rate limiting by token buckets, on a clock that only the test moves; and whom X-Forwarded-For makes a client."""

import math
import re
import tracemalloc

import pytest

from inventory_api import RateLimiter
from tests.api.conftest import FakeClock, Service, one_engine

COSTS = [
    ("GET", "/products/1", "", 1),
    ("HEAD", "/products/1", "", 1),
    ("GET", "/products/9", "", 1),
    ("GET", "/products/abc", "", 1),
    ("GET", "/products", "", 2),
    ("HEAD", "/products", "", 2),
    ("GET", "/products", "limit=0", 2),
    ("GET", "/products/search", "name=desk", 5),
    ("HEAD", "/products/search", "name=desk", 5),
    ("GET", "/products/search", "", 5),
    ("PATCH", "/products/1", "", 5),
    ("PATCH", "/products/abc", "", 5),
]
FREE = [
    ("GET", "/", 200),
    ("GET", "/healthz", 200),
    ("HEAD", "/healthz", 200),
    ("GET", "/readyz", 200),
    ("OPTIONS", "/products/1", 200),
    ("OPTIONS", "/products", 200),
    ("OPTIONS", "/products/search", 200),
    ("GET", "/nowhere", 404),
    ("POST", "/products", 405),
    ("DELETE", "/products/1", 405),
    ("PATCH", "/products/search", 405),
]


def remaining(service: Service, path: str = "/products/1") -> int:
    """The tokens left after a request that costs one."""
    found = re.fullmatch(r'"default";r=([0-9]+);t=[0-9]+', service.get(path).headers["ratelimit"])
    assert found
    return int(found[1])


@one_engine
@pytest.mark.parametrize(("method", "path", "query", "cost"), COSTS)
def test_a_request_has_its_cost_whatever_the_answer(
    desks: Service, method: str, path: str, query: str, cost: int
) -> None:
    desks.restart(rate_limit=100.0, rate_burst=200)
    answered = desks.request(method, path, query)
    assert answered.headers["ratelimit-policy"] == '"default";q=200;w=2'
    assert answered.headers["ratelimit"] == f'"default";r={200 - cost};t=1'


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
@pytest.mark.parametrize(("method", "path", "status"), FREE)
def test_everything_else_is_free(desks: Service, method: str, path: str, status: int) -> None:
    desks.restart(rate_limit=1.0, rate_burst=5)
    desks.get("/products/search", "name=desk")  # the bucket is empty now
    answered = desks.request(method, path)
    assert answered.status_code == status
    assert not {"ratelimit", "ratelimit-policy"} & {name.lower() for name in answered.headers}


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
def test_an_empty_bucket_refuses_and_says_when_to_come_back(desks: Service) -> None:
    desks.restart(rate_limit=2.0, rate_burst=10)
    assert [desks.get("/products/search", "name=desk").status_code for _ in range(3)] == [200, 200, 429]
    refused = desks.get("/products/search", "name=desk")
    assert refused.headers["retry-after"] == "3"  # 5 tokens at 2 a second
    assert refused.headers["ratelimit"] == '"default";r=0;t=5'
    assert refused.headers["ratelimit-policy"] == '"default";q=10;w=5'
    assert desks.get("/products/1").headers["retry-after"] == "1"


@one_engine
def test_a_refused_request_takes_no_tokens(desks: Service) -> None:
    desks.restart(rate_limit=1.0, rate_burst=6)
    assert [desks.get("/products/search", "name=desk").status_code for _ in range(5)] == [200, 429, 429, 429, 429]
    assert desks.get("/products/1").status_code == 200


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


@one_engine
def test_a_bucket_fills_up_to_its_burst_and_no_further(desks: Service) -> None:
    desks.restart(rate_limit=10.0, rate_burst=20)
    for _ in range(4):
        desks.get("/products/search", "name=desk")
    desks.clock.tick(0.5)
    assert remaining(desks) == 4
    desks.clock.tick(86_400)
    assert remaining(desks) == 19


@one_engine
def test_a_refused_change_changes_nothing(desks: Service) -> None:
    desks.restart(rate_limit=1.0, rate_burst=5)
    assert [desks.patch(1, '{"stock_delta": -1}').status_code for _ in range(3)] == [200, 429, 429]
    assert desks.execute("SELECT stock_level FROM products WHERE id = 1") == [(11,)]


@one_engine
def test_no_limit_means_no_headers_and_no_refusals(desks: Service) -> None:
    desks.restart(rate_limit=0.0, rate_burst=5)
    answers = [desks.get("/products/search", "name=desk") for _ in range(50)]
    assert {answered.status_code for answered in answers} == {200}
    assert not {"ratelimit", "ratelimit-policy"} & {name.lower() for name in answers[-1].headers}


@one_engine
def test_every_client_has_a_bucket_of_its_own(desks: Service) -> None:
    desks.restart(rate_limit=1.0, rate_burst=5)
    for desks.address in ("10.0.0.1", "10.0.0.2"):
        assert [desks.get("/products/search", "name=desk").status_code for _ in range(2)] == [200, 429]


@one_engine
def test_who_changes_addresses_within_an_ipv6_network_stays_one_client(desks: Service) -> None:
    desks.restart(rate_limit=1.0, rate_burst=10)
    for desks.address, left in (
        ("2001:db8::1", 9),
        ("2001:db8::ffff:1:2:3", 8),
        ("2001:db8:0:1::1", 9),
        ("2001:db8::2", 7),
    ):
        assert remaining(desks) == left


# ---------------------------------------------------------------- the limiter alone


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


# ---------------------------------------------------------------- X-Forwarded-For


@one_engine
def test_nobody_is_believed_who_is_not_the_trusted_proxy(desks: Service) -> None:
    desks.restart(rate_limit=1.0, rate_burst=10)
    assert [remaining_for(desks, f"10.0.0.{n}") for n in (1, 2)] == [9, 8]
    desks.restart(rate_limit=1.0, rate_burst=10, trusted_proxy="10.9.9.9")
    assert [remaining_for(desks, f"10.0.0.{n}") for n in (1, 2)] == [9, 8]
    assert desks.lines[-1].endswith(" client=127.0.0.1\n")


def remaining_for(service: Service, forwarded_for: str) -> int:
    answered = service.get("/products/1", X_Forwarded_For=forwarded_for)
    return int(answered.headers["ratelimit"].split("r=")[1].split(";")[0])


@one_engine
@pytest.mark.parametrize("trusted", ["127.0.0.1", "*"])
def test_the_trusted_proxy_tells_who_the_client_is(desks: Service, trusted: str) -> None:
    desks.restart(rate_limit=1.0, rate_burst=10, trusted_proxy=trusted)
    assert [remaining_for(desks, f"10.0.0.{n}") for n in (1, 2, 1)] == [9, 9, 8]
    assert desks.lines[-1].endswith(" client=10.0.0.1\n")


@one_engine
def test_of_several_hops_only_the_proxys_own_is_believed(desks: Service) -> None:
    desks.restart(rate_limit=1.0, rate_burst=10, trusted_proxy="127.0.0.1")
    assert [remaining_for(desks, f"1.2.3.{n}, 10.0.0.1") for n in (1, 2)] == [9, 8]
    assert desks.lines[-1].endswith(" client=10.0.0.1\n")


@one_engine
def test_without_the_header_the_proxy_itself_is_the_client(desks: Service) -> None:
    desks.restart(trusted_proxy="127.0.0.1")
    assert desks.get("/products/1").status_code == 200
    assert desks.lines[-1].endswith(" client=127.0.0.1\n")


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
@pytest.mark.parametrize("forwarded_for", ['"10.0.0.1', '10.0.0.1"', '"', 'a"b, "x'])
def test_a_malformed_header_of_the_proxy_is_a_bad_request(desks: Service, forwarded_for: str) -> None:
    desks.restart(trusted_proxy="127.0.0.1")
    refused = desks.get("/products/1", X_Forwarded_For=forwarded_for)
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
    assert "x-request-id" in refused.headers
    assert len(desks.lines) == 1


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
