"""What every response carries: problems, request ids, caching headers, validators, and a line in the log."""

import re
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest

from inventory_api import DatabaseUnavailable
from tests.api.conftest import Service, one_engine

# What a method is called is the app's business here, not the test client's.
pytestmark = pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")

MEMBERS = {"type", "title", "status", "detail", "instance", "request_id"}
JSON = {"Content_Type": "application/json"}
ROUTES = ["/", "/healthz", "/readyz", "/products", "/products/1", "/products/search"]
QUERY = {"/products/search": "name=desk"}


def assert_is_problem(answered: Any, status: int, path: str) -> None:
    assert answered.status_code == status, answered.text
    assert answered.headers["content-type"] == "application/problem+json"
    assert answered.headers["cache-control"] == "no-store"
    assert answered.headers["x-content-type-options"] == "nosniff"
    problem = answered.json
    assert problem.keys() >= MEMBERS
    assert (problem["status"], problem["instance"]) == (status, path)
    assert problem["request_id"] == answered.headers["x-request-id"]
    assert all(isinstance(problem[member], str) and problem[member] for member in MEMBERS - {"status"})


# ---------------------------------------------------------------- problems


@one_engine
@pytest.mark.parametrize(
    ("method", "path", "query", "status"),
    [
        ("GET", "/nowhere", "", 404),
        ("GET", "/products/1/x", "", 404),
        ("GET", "/products/1/", "", 404),
        ("DELETE", "/nowhere", "", 404),
        ("BREW", "/nowhere", "", 404),
        ("GET", "/products/4", "", 404),
        ("GET", "/products/99999999999999999999", "", 404),
        ("GET", "/products/abc", "", 400),
        ("GET", "/products", "limit=0", 400),
        ("GET", "/products/search", "", 400),
        ("POST", "/products", "", 405),
        ("DELETE", "/products/1", "", 405),
        ("PATCH", "/products/search", "", 405),
        ("PATCH", "/healthz", "", 405),
        ("BREW", "/products/1", "", 405),
        ("PROPFIND", "/", "", 405),
        ("PATCH", "/products/1", "", 415),
    ],
)
def test_every_error_is_a_problem_document(desks: Service, method: str, path: str, query: str, status: int) -> None:
    assert_is_problem(desks.request(method, path, query), status, path)


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("{", {}, 400),
        (" " * 20_000, {}, 413),
        ("{}", {"Content_Type": "text/plain"}, 415),
        ("{}", {}, 422),
        ('{"price": 1}', {"If_Match": '"2"'}, 412),
        ('{"stock_delta": -13}', {}, 409),
    ],
)
def test_every_refused_change_is_a_problem_document(
    desks: Service, body: str, headers: dict[str, str], status: int
) -> None:
    assert_is_problem(desks.patch(1, body, **headers), status, "/products/1")


@one_engine
def test_refusals_at_the_gate_are_problem_documents(desks: Service) -> None:
    desks.restart(api_key="key")
    assert_is_problem(desks.patch(1, "{}"), 401, "/products/1")
    desks.restart(host="0.0.0.0")
    assert_is_problem(desks.patch(1, "{}"), 403, "/products/1")
    desks.restart(rate_limit=1.0, rate_burst=5)
    desks.get("/products/search", "name=desk")
    assert_is_problem(desks.get("/products/1"), 429, "/products/1")


@one_engine
@pytest.mark.parametrize("path", ["/caf\xc3\xa9", "/a%20b", "/a%0d%0aX:y", "/%22%3E", "/%FF"])
def test_the_instance_is_a_uri_reference(desks: Service, path: str) -> None:
    instance = desks.get(path).json["instance"]
    assert re.fullmatch(r"(?:[A-Za-z0-9/._~!$&'()*+,;=:@-]|%[0-9A-F]{2})+", instance)
    assert urlsplit(instance).netloc == ""


def broken(error: Exception) -> Callable[..., NoReturn]:
    def fail(*arguments: object) -> NoReturn:
        raise error

    return fail


REQUESTS = [
    ("GET", "/products/1", ""),
    ("GET", "/products", ""),
    ("GET", "/products/search", "name=desk"),
    ("PATCH", "/products/1", ""),
]


@one_engine
@pytest.mark.parametrize(("method", "path", "query"), [*REQUESTS, ("GET", "/readyz", "")])
def test_a_bug_tells_nothing_of_itself(
    desks: Service,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    query: str,
) -> None:
    for work in ("read", "write"):
        monkeypatch.setattr(desks.database, work, broken(RuntimeError("SELECT secret FROM /srv/inventory.db")))
    failed = desks.request(method, path, query, '{"price": 1}', **JSON)
    assert_is_problem(failed, 500, path)
    assert not re.search(r"secret|SELECT|srv|RuntimeError|Traceback|\.py|sqlite", failed.text, re.IGNORECASE)
    assert failed.json["request_id"] in caplog.text
    assert "secret" in caplog.text


@one_engine
@pytest.mark.parametrize(("method", "path", "query"), [*REQUESTS, ("GET", "/readyz", "")])
def test_a_database_that_is_away_is_a_problem_with_a_time_to_come_back(
    desks: Service, monkeypatch: pytest.MonkeyPatch, method: str, path: str, query: str
) -> None:
    for work in ("read", "write"):
        monkeypatch.setattr(desks.database, work, broken(DatabaseUnavailable("the database is away")))
    failed = desks.request(method, path, query, '{"price": 1}', **JSON)
    assert_is_problem(failed, 503, path)
    assert re.fullmatch("[1-9][0-9]*", failed.headers["retry-after"])


@one_engine
def test_while_the_database_is_away_health_and_the_cache_still_answer(
    desks: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = desks.get("/products/1")
    monkeypatch.setattr(desks.database, "read", broken(DatabaseUnavailable("away")))
    assert [desks.get(path).status_code for path in ("/healthz", "/", "/readyz")] == [200, 200, 503]
    assert desks.get("/products/1").json == before.json


# ---------------------------------------------------------------- methods


@one_engine
@pytest.mark.parametrize("path", [route for route in ROUTES if route != "/products/1"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "REPORT", "BREW"])
def test_a_method_that_a_route_has_not_is_answered_with_those_it_has(desks: Service, method: str, path: str) -> None:
    refused = desks.request(method, path)
    assert refused.status_code == 405
    assert {"GET", "HEAD"} <= allowed(refused) <= {"GET", "HEAD", "OPTIONS"}


def allowed(answered: Any) -> set[str]:
    return {method.strip() for method in answered.headers["allow"].split(",")}


@one_engine
def test_the_allowed_methods_are_the_same_wherever_they_are_told(desks: Service) -> None:
    told = [allowed(desks.request(method, "/products/1")) for method in ("OPTIONS", "POST", "BREW")]
    assert told[0] >= {"GET", "HEAD", "PATCH"}
    assert told == [told[0]] * 3


@one_engine
@pytest.mark.parametrize("path", ROUTES)
def test_options_lists_the_methods_of_a_route(desks: Service, path: str) -> None:
    answered = desks.request("OPTIONS", path)
    assert answered.status_code in (200, 204)
    assert answered.content == b""
    assert ("PATCH" in allowed(answered)) == (path == "/products/1")
    assert allowed(answered) >= {"GET", "HEAD"}
    assert answered.headers["cache-control"] in ("private, no-cache", "no-store")
    assert answered.headers["x-content-type-options"] == "nosniff"


@one_engine
def test_options_needs_no_key_no_id_and_no_product(desks: Service) -> None:
    desks.restart(api_key="key")
    answers = [desks.request("OPTIONS", f"/products/{id}") for id in ("1", "9", "abc")]
    assert {answered.status_code for answered in answers} <= {200, 204}


@pytest.mark.parametrize("path", ROUTES)
def test_head_is_get_without_its_body(desks: Service, path: str) -> None:
    got, headed = (desks.request(method, path, QUERY.get(path, "")) for method in ("GET", "HEAD"))
    assert (headed.status_code, headed.content) == (200, b"")
    varying = ("x-request-id", "x-cache")
    assert [(k, v) for k, v in sorted(headed.headers.items()) if k.lower() not in varying] == [
        (k, v) for k, v in sorted(got.headers.items()) if k.lower() not in varying
    ]
    assert int(headed.headers["content-length"]) == len(got.content) > 0


@one_engine
@pytest.mark.parametrize(("path", "status"), [("/products/9", 404), ("/products/abc", 400), ("/nowhere", 404)])
def test_head_fails_as_get_does(desks: Service, path: str, status: int) -> None:
    headed = desks.request("HEAD", path)
    assert (headed.status_code, headed.content) == (status, b"")
    assert headed.headers["content-type"] == "application/problem+json"


# ---------------------------------------------------------------- headers


@one_engine
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_has_the_common_headers(desks: Service, method: str, path: str) -> None:
    answered = desks.request(method, path, QUERY.get(path, ""))
    live = path in ("/healthz", "/readyz")
    assert answered.headers["cache-control"] == ("no-store" if live else "private, no-cache")
    assert answered.headers["content-type"] == "application/json"
    assert answered.headers["x-content-type-options"] == "nosniff"
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answered.headers["x-request-id"])


def test_a_change_has_the_common_headers(desks: Service) -> None:
    changed = desks.patch(1, '{"price": 1}', X_Request_ID="mine")
    assert changed.headers["cache-control"] == "private, no-cache"
    assert changed.headers["content-type"] == "application/json"
    assert changed.headers["x-content-type-options"] == "nosniff"
    assert changed.headers["x-request-id"] == "mine"
    assert "x-cache" not in changed.headers


@one_engine
@pytest.mark.parametrize("offered", ["a", "7", "A-b_c.9", "x" * 64, "0f8fad5b-d9cb-469f-a165-70867728950e"])
def test_a_safe_request_id_is_kept(desks: Service, offered: str) -> None:
    for path in ("/products/1", "/nowhere", "/products/abc"):
        assert desks.get(path, X_Request_ID=offered).headers["x-request-id"] == offered
    assert f"request_id={offered} " in desks.lines[-1]


@one_engine
@pytest.mark.parametrize(
    "offered", ["", " ", "x" * 65, "a b", "a,b", "a\tb", 'a"b', "é", "<a>", "a\x7f", "a;b", "a\\b", "{}", "%0a"]
)
def test_an_unsafe_request_id_is_replaced(desks: Service, offered: str) -> None:
    answered = desks.get("/products/9", X_Request_ID=offered)
    given = answered.headers["x-request-id"]
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given)
    assert given != offered.strip()
    assert answered.json["request_id"] == given


@one_engine
def test_every_request_has_an_id_of_its_own(desks: Service) -> None:
    assert len({desks.get("/healthz").headers["x-request-id"] for _ in range(50)}) == 50


@pytest.mark.parametrize("path", ["/products/1", "/products", "/products/search", "/products/9"])
def test_a_cached_read_says_whether_the_cache_had_it(desks: Service, path: str) -> None:
    query = QUERY.get(path, "")
    assert [desks.get(path, query).headers["x-cache"] for _ in range(3)] == ["MISS", "HIT", "HIT"]
    assert desks.get(path, query, Cache_Control="no-cache").headers["x-cache"] == "MISS"
    assert desks.request("HEAD", path, query).headers["x-cache"] == "HIT"


@one_engine
@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/nowhere", "/products/abc"])
def test_what_is_not_cached_says_nothing_of_the_cache(desks: Service, path: str) -> None:
    assert "x-cache" not in desks.get(path).headers


# ---------------------------------------------------------------- validators


@pytest.mark.parametrize("path", ["/products/1", "/products", "/products/search"])
@pytest.mark.parametrize("header", ["{}", "W/{}", '"x", {}', 'W/"x",W/{}', "*", " {} ", ",{},"])
@one_engine
def test_who_has_it_already_is_not_sent_it_again(desks: Service, path: str, header: str) -> None:
    got = desks.get(path, QUERY.get(path, ""))
    again = desks.get(path, QUERY.get(path, ""), If_None_Match=header.format(got.headers["etag"]))
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == got.headers["etag"]
    assert again.headers["cache-control"] == "private, no-cache"
    assert "content-type" not in again.headers


@one_engine
@pytest.mark.parametrize("header", ['"2"', '"x"', "", "1", '"11"', '"1 "', 'W/"2"', '"\\"1"', ","])
def test_who_has_another_version_is_sent_this_one(desks: Service, header: str) -> None:
    assert desks.get("/products/1", If_None_Match=header).status_code == 200


@one_engine
def test_head_is_conditional_too(desks: Service) -> None:
    assert desks.request("HEAD", "/products/1", If_None_Match='"1"').status_code == 304


@one_engine
def test_what_is_not_there_is_never_unmodified(desks: Service) -> None:
    assert desks.get("/products/9", If_None_Match="*").status_code == 404


@pytest.mark.parametrize("path", ["/products/1", "/products", "/products/search"])
def test_after_a_change_the_old_etag_no_longer_fits(desks: Service, path: str) -> None:
    old = desks.get(path, QUERY.get(path, "")).headers["etag"]
    desks.patch(1, '{"price": 1}')
    assert desks.get(path, QUERY.get(path, ""), If_None_Match=old).status_code == 200


@one_engine
def test_pages_that_differ_have_etags_that_differ(desks: Service) -> None:
    queries = ("", "limit=1", "sort=price", "include_total=true")
    etags = [desks.get("/products", query).headers["etag"] for query in queries]
    assert len(set(etags)) == len(queries)
    assert all(re.fullmatch(r'(W/)?"[\x21\x23-\x7e]+"', etag) for etag in etags)


# ---------------------------------------------------------------- the log

LINE = r"\S+ method={} path={} status={} ms=[0-9]+\.[0-9]+ request_id={} client={}\n"


@one_engine
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/products/1", 200), ("HEAD", "/healthz", 200), ("OPTIONS", "/", 200), ("GET", "/products/9", 404),
        ("GET", "/nowhere", 404), ("POST", "/products", 405), ("BREW", "/products", 405), ("PATCH", "/products/1", 415),
    ],
)  # fmt: skip
def test_every_request_has_one_line_in_the_log(desks: Service, method: str, path: str, status: int) -> None:
    desks.request(method, path, X_Request_ID="mine")
    (line,) = desks.lines
    assert re.fullmatch(LINE.format(method, path, status, "mine", r"127\.0\.0\.1"), line)


@one_engine
def test_a_bug_has_its_line_in_the_log_too(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks.database, "read", broken(RuntimeError("oops")))
    desks.get("/products/1")
    (line,) = desks.lines
    assert " status=500 " in line


@one_engine
@pytest.mark.parametrize(
    "path",
    [
        "/a%0Astatus=200",
        "/a%0D%0Ab",
        "/a%20status=200%20b",
        "/a%1B%5B31m",
        "/caf%C3%A9",
        "/%E2%80%A8x",
        "/%C2%85x",
        "/a%22b",
        "/%00",
        "/%FF",
    ],
)
def test_nothing_in_a_path_can_forge_the_log(desks: Service, path: str) -> None:
    desks.get(path)
    (line,) = desks.lines
    assert line.isascii()
    assert line[:-1].isprintable()
    assert len(line.split()) == 7
    assert " status=404 " in line


@one_engine
def test_the_log_keeps_keys_and_search_terms_to_itself(desks: Service) -> None:
    desks.restart(api_key="open-sesame")
    desks.patch(1, '{"price": 1}', Authorization="Bearer open-sesame")
    desks.get("/products/search", "name=confidential")
    assert len(desks.lines) == 2
    assert not re.search("sesame|confidential", "".join(desks.lines))


@one_engine
def test_the_index_links_every_route(service: Service) -> None:
    index = service.get("/")
    assert index.json.keys() >= {"name", "version", "links"}
    paths = {re.sub(r"\{\?.*", "", link) for link in index.json["links"].values()}
    assert paths >= {"/products", "/products/{id}", "/products/search", "/healthz", "/readyz"}
