"""What every response carries: problems, headers, conditional requests, the log."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest

from inventory_api import BadInput, DatabaseUnavailable, is_not_modified, parse_query
from tests.api.conftest import Service, one_engine

# What a method is called is the app's business here, not the test client's.
pytestmark = pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")

ROUTES = ["/", "/products", "/products/1", "/healthz", "/readyz"]


def assert_problem(result: Any, status: int, path: str) -> None:
    assert result.status_code == status
    assert result.headers["Content-Type"] == "application/problem+json"
    assert result.headers["Cache-Control"] == "no-store"
    assert result.headers["X-Content-Type-Options"] == "nosniff"
    document = result.json
    assert document.keys() >= {"type", "title", "status", "detail", "instance", "request_id"}
    assert (document["status"], document["instance"]) == (status, path)
    assert document["request_id"] == result.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/products/", 400),
        ("GET", "/products/1/x", 404),
        ("GET", "/products/0", 400),
        ("GET", "/products/99", 404),
        ("POST", "/products", 405),
        ("DELETE", "/products/1", 405),
        ("PATCH", "/products/search", 405),
        ("BREW", "/products/1", 405),
        ("WEBSOCKET", "/products/1", 405),
        ("WEBSOCKET", "/nowhere", 404),
        ("GET", "/products/search", 400),
    ],
)
@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@one_engine
def test_errors_are_problem_documents(desks: Service, method: str, path: str, status: int) -> None:
    assert_problem(desks.request(method, path), status, path)


@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@one_engine
def test_a_405_names_what_is_allowed(desks: Service) -> None:
    for method in ("POST", "BREW", "WEBSOCKET"):
        allowed = desks.request(method, "/products/1").headers["Allow"].split(", ")
        assert set(allowed) == {"GET", "HEAD", "PATCH", "OPTIONS"}


@pytest.mark.parametrize("path", ROUTES)
@one_engine
def test_options_lists_methods_and_costs_nothing(desks: Service, path: str) -> None:
    desks.restart(rate_limit=1.0)
    result = desks.request("OPTIONS", path)
    assert result.status_code == 200
    assert {"GET", "HEAD"} <= set(result.headers["Allow"].split(", "))
    assert "RateLimit" not in result.headers


@pytest.mark.parametrize("path", [*ROUTES, "/products/99", "/products/x", "/nope"])
@one_engine
def test_head_is_get_without_the_body(desks: Service, path: str) -> None:
    desks.get(path)
    got, head = desks.get(path), desks.request("HEAD", path)
    assert (head.status_code, head.text) == (got.status_code, "")
    differs = {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in differs | {"content-length"}} == {
        k: v for k, v in got.headers.items() if k not in differs | {"content-length"}
    }


@one_engine
def test_a_bug_is_a_500_that_tells_nothing(desks: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(work: Any) -> Any:
        raise KeyError("secret table")

    monkeypatch.setattr(desks.database, "read", broken)
    result = desks.get("/products/1")
    assert_problem(result, 500, "/products/1")
    assert "secret" not in result.text


@pytest.mark.parametrize("offered", ["abc", "A-1_2.z", "x" * 64])
@one_engine
def test_a_safe_request_id_of_the_client_is_taken(desks: Service, offered: str) -> None:
    assert desks.get("/healthz", X_Request_ID=offered).headers["X-Request-ID"] == offered


@pytest.mark.parametrize("offered", ["", "x" * 65, "a b", "a\tb", "é", "a,b", "<x>", 'a"b'])
@one_engine
def test_any_other_request_id_is_replaced(desks: Service, offered: str) -> None:
    first = desks.get("/healthz", X_Request_ID=offered).headers["X-Request-ID"]
    second = desks.get("/healthz", X_Request_ID=offered).headers["X-Request-ID"]
    assert offered not in (first, second)
    assert first != second
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", first)


@one_engine
def test_what_may_be_kept_and_what_may_not(desks: Service) -> None:
    for path, query in (("/", ""), ("/products", ""), ("/products/1", ""), ("/products/search", "name=a")):
        assert desks.get(path, query).headers["Cache-Control"] == "private, no-cache"
    for path in ("/healthz", "/readyz", "/products/99", "/nope"):
        assert desks.get(path).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("header", "not_modified"),
    [
        ('"1"', True),
        ('W/"1"', True),
        ('"0", "1"', True),
        ("*", True),
        ('"2"', False),
        ("1", False),
        ('"11"', False),
        ("", False),
        (None, False),
    ],
)
def test_if_none_match_compares_weakly(header: str | None, not_modified: bool) -> None:
    assert is_not_modified(header, '"1"') == not_modified


def test_a_product_not_changed_is_not_sent_again(desks: Service) -> None:
    result = desks.get("/products/1", If_None_Match='"1"')
    assert (result.status_code, result.text, result.headers["ETag"]) == (304, "", '"1"')
    assert "Content-Type" not in result.headers
    desks.patch(1, '{"price": 1}')
    assert desks.get("/products/1", If_None_Match='"1"').status_code == 200


@pytest.mark.parametrize(
    ("path", "query"), [("/products/1", ""), ("/products/99", ""), ("/products", ""), ("/products/search", "name=a")]
)
@one_engine
def test_x_cache_tells_whether_the_cache_had_it(desks: Service, path: str, query: str) -> None:
    assert [desks.get(path, query).headers["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]
    desks.clock.tick(30)
    assert desks.get(path, query).headers["X-Cache"] == "MISS"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("x=1", "'x'"),
        ("limit=5&limit=5", "'limit'"),
        ("limit=", "'limit'"),
        ("limit", "'limit'"),
        ("&", "''"),
        ("limit=5&", "''"),
        ("limit=5&&sort=id", "''"),
        ("=5", "''"),
        ("limit=%00", "'limit'"),
        ("limit=%FF", "'limit'"),
        ("limit=5%", "'limit'"),
        ("limit=5%2", "'limit'"),
        ("limit=%GG", "'limit'"),
        ("LIMIT=5", "'LIMIT'"),
        ("limit[]=5", "'limit[]'"),
        ("%FF=1", "name"),
        ("sort=id\xff", "'sort'"),
    ],
)
def test_a_bad_query_is_refused_and_the_parameter_named(query: str, named: str) -> None:
    with pytest.raises(BadInput, match=re.escape(named)):
        parse_query(query, ("limit", "sort"))


@pytest.mark.parametrize("path", ROUTES)
@one_engine
def test_an_unknown_parameter_is_refused_on_every_route(desks: Service, path: str) -> None:
    result = desks.get(path, "colour=red")
    assert (result.status_code, "'colour'" in result.json["detail"]) == (400, True)


def test_escaped_letters_are_letters() -> None:
    assert parse_query("l%69mit=%35&s=%C3%A9+%2B", ("limit", "s")) == {"limit": "5", "s": "é +"}


@one_engine
def test_the_index_leads_to_every_route(desks: Service) -> None:
    document = desks.get("/").json
    assert document["name"]
    assert document["version"]
    assert {link.partition("{?")[0] for link in document["links"].values()} == {
        "/products", "/products/search", "/products/{id}", "/healthz", "/readyz", "/metrics", "/openapi.json",
    }  # fmt: skip


@one_engine
def test_every_request_is_one_line_in_the_log(desks: Service) -> None:
    desks.lines.clear()
    desks.get("/products/1", X_Request_ID="me-1")
    desks.get("/no%0Asuch%20path%1B[31m status=200")
    desks.patch(1, "{")
    assert len(desks.lines) == 3
    assert all(line.count("\n") == 1 and line.endswith("\n") and line[:-1].isprintable() for line in desks.lines)
    assert re.search(
        r"method=GET path=/products/1 status=200 ms=\d+\.\d request_id=me-1 client=127\.0\.0\.1$", desks.lines[0]
    )
    assert desks.lines[1].count("status=404") == 1
    assert "method=PATCH path=/products/1 status=400" in desks.lines[2]


QUERY = {"/products/search": "name=desk"}
JSON = {"Content_Type": "application/json"}
MEMBERS = {"type", "title", "status", "detail", "instance", "request_id"}
REQUESTS = [
    ("GET", "/products/1", ""),
    ("GET", "/products", ""),
    ("GET", "/products/search", "name=desk"),
    ("PATCH", "/products/1", ""),
]


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


def allowed(answered: Any) -> set[str]:
    return {method.strip() for method in answered.headers["allow"].split(",")}


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
