"""openapi.json and the app say the same: routes, methods, parameters, and every answer that is documented."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import falcon
import falcon.testing
import pytest

import inventory_api as api
from inventory_api import OPENAPI_FILE, DatabaseUnavailable, Settings
from tests.api import conftest
from tests.api.conftest import Service, one_engine

DOCUMENT: dict[str, Any] = json.loads(OPENAPI_FILE.read_bytes())
METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
EVERY_ANSWER_HAS = {"content-type", "content-length"}  # which OpenAPI does not count among the headers
OPERATIONS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in METHODS if method in item]


def resolved(node: Any) -> Any:
    """The object that a reference stands for, or the node itself."""
    if isinstance(node, dict) and node.get("$ref", "").startswith("#/"):
        target: Any = DOCUMENT
        for step in node["$ref"][2:].split("/"):
            target = target[step]
        return resolved(target)
    return node


def nodes(node: Any = DOCUMENT, path: str = "#") -> Iterator[tuple[str, Any]]:
    """Every object of the document with where it stands."""
    if isinstance(node, dict):
        yield path, node
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from nodes(child, f"{path}/{key}")


def parameters(path: str, method: str) -> dict[str, Any]:
    item = DOCUMENT["paths"][path]
    given = [resolved(parameter) for parameter in [*item.get("parameters", []), *item[method].get("parameters", [])]]
    return {parameter["name"]: parameter for parameter in given}


def documented(path: str, method: str, status: str) -> dict[str, Any]:
    response: dict[str, Any] = resolved(DOCUMENT["paths"][path][method]["responses"][status])
    return response


def required(response: dict[str, Any]) -> set[str]:
    """The names of the headers that a response always has, in lower case."""
    return {name.lower() for name, header in response["headers"].items() if resolved(header).get("required")}


# ---------------------------------------------------------------- the document


@one_engine
def test_it_is_served_byte_for_byte(service: Service) -> None:
    served = service.get("/openapi.json")
    assert served.content == OPENAPI_FILE.read_bytes()
    assert served.headers["content-type"] == "application/json"


def test_it_is_of_this_version() -> None:
    assert DOCUMENT["info"]["version"] == api.VERSION


def test_it_is_valid_openapi_and_its_schemas_are_valid_json_schema() -> None:
    definitions = pytest.importorskip("schemathesis.specs.openapi.definitions", reason="make contract has it")
    definitions.OPENAPI_31_VALIDATOR.validate(DOCUMENT)
    for _, node in nodes():
        if "schema" in node:
            pytest.importorskip("jsonschema_rs").meta.validate(node["schema"])


def test_what_is_referred_to_is_there_and_what_is_there_is_used() -> None:
    used = {node["$ref"] for _, node in nodes() if "$ref" in node}
    used.update(f"#/components/responses/{name}" for name in REFUSED)
    used.update(
        f"#/components/securitySchemes/{name}" for path, method in OPERATIONS for name in security(path, method)
    )
    present = {f"#/components/{kind}/{name}" for kind, parts in DOCUMENT["components"].items() for name in parts}
    assert used == present


def security(path: str, method: str) -> set[str]:
    return {name for way in DOCUMENT["paths"][path][method].get("security", []) for name in way}


def test_each_example_fits_its_schema(fits: Fits) -> None:
    for path, node in nodes():
        if "schema" in node and "$ref" not in node:
            for example in examples(node):
                fits(node["schema"], example, path)


def examples(node: dict[str, Any]) -> list[Any]:
    return [node["example"]] if "example" in node else [each["value"] for each in node.get("examples", {}).values()]


def test_there_is_an_example_of_every_body_and_header() -> None:
    without = [path for path, node in nodes() if "schema" in node and not examples(node)]
    assert without == ["#/components/parameters/Cursor"]  # which nobody can make up


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_the_examples_of_a_problem_are_of_its_status(path: str, method: str) -> None:
    for status in DOCUMENT["paths"][path][method]["responses"]:
        problem = documented(path, method, status).get("content", {}).get("application/problem+json", {})
        assert {example["status"] for example in examples(problem)} <= {int(status)}


# ---------------------------------------------------------------- what it says and what the app has


@one_engine
def test_the_routes_and_methods_are_those_of_the_app(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    routes: dict[str, object] = {}
    monkeypatch.setattr(falcon.App, "add_route", lambda app, path, resource: routes.update({path: resource}))
    api.create_app(Settings(), service.database)
    written = {(path, method.lower()) for path, resource in routes.items() for method in api.methods(resource)}
    assert written == set(OPERATIONS)


@pytest.mark.parametrize("path", DOCUMENT["paths"])
@pytest.mark.parametrize("method", ["OPTIONS", "POST"])
@pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
@one_engine
def test_the_methods_that_a_path_allows_are_those_documented(desks: Service, path: str, method: str) -> None:
    allowed = desks.request(method, path.format(id=1)).headers["Allow"]
    assert set(allowed.lower().split(", ")) == {name for other, name in OPERATIONS if other == path}


@one_engine
def test_the_index_links_to_every_path(service: Service) -> None:
    links = service.get("/").json["links"].values()
    assert {link.partition("{?")[0] for link in links} == DOCUMENT["paths"].keys() - {"/"}


@one_engine
def test_the_index_is_the_example_of_it(service: Service) -> None:
    (example,) = examples(documented("/", "get", "200")["content"]["application/json"])
    assert service.get("/").json == example


@pytest.mark.parametrize(
    ("path", "allowed"), [("/products", api.PAGE_PARAMETERS), ("/products/search", api.SEARCH_PARAMETERS)]
)
@pytest.mark.parametrize("method", ["get", "head"])
def test_the_parameters_of_a_page_are_those_that_are_read(path: str, method: str, allowed: tuple[str, ...]) -> None:
    queried = {name for name, parameter in parameters(path, method).items() if parameter["in"] == "query"}
    assert queried == set(allowed)


def test_no_other_path_has_query_parameters() -> None:
    for path, method in OPERATIONS:
        if path not in ("/products", "/products/search") or method == "options":
            assert all(parameter["in"] != "query" for parameter in parameters(path, method).values())


def test_the_limits_are_those_of_the_code() -> None:
    search, schemas = parameters("/products/search", "get"), DOCUMENT["components"]["schemas"]
    limit, name = search["limit"]["schema"], search["name"]["schema"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, api.MAX_LIMIT, api.DEFAULT_LIMIT)
    assert search["sort"]["schema"]["enum"] == list(api.SORTS)
    assert (name["minLength"], name["maxLength"]) == (1, api.MAX_NEEDLE)
    assert schemas["Stock"] == {"type": "integer", "minimum": 0, "maximum": api.MAX_STOCK}
    assert schemas["Change"]["properties"]["stock_delta"]["maximum"] == api.MAX_STOCK
    assert schemas["Change"]["properties"]["stock_delta"]["minimum"] == -api.MAX_STOCK
    assert schemas["Change"]["properties"]["price"]["oneOf"][1]["maximum"] == api.MAX_CENTS / 100
    assert schemas["Page"]["properties"]["total"]["maximum"] == api.MAX_TOTAL
    assert schemas["Page"]["properties"]["items"]["maxItems"] == api.MAX_LIMIT
    assert schemas["Product"]["properties"]["name"]["maxLength"] == api.MAX_NAME
    assert schemas["Product"]["properties"]["id"]["maximum"] == api.MAX_ID


def test_a_change_is_documented_in_each_media_type() -> None:
    body = resolved(DOCUMENT["paths"]["/products/{id}"]["patch"]["requestBody"])
    assert body["content"].keys() == set(api.MEDIA_TYPES)


def test_the_statuses_of_a_change_are_those_of_the_errors() -> None:
    mapped = {str(problem.status) for problem in api.PROBLEMS.values()}
    assert DOCUMENT["paths"]["/products/{id}"]["patch"]["responses"].keys() == mapped | {"200", "500"}


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_head_is_documented_as_get(path: str) -> None:
    item = DOCUMENT["paths"][path]
    for part in ("parameters", "responses", "security"):
        assert item["head"].get(part) == item["get"].get(part)


# ---------------------------------------------------------------- real answers


class Way(NamedTuple):
    """How to come by an answer: a request, and what is wrong with the service."""

    path: str | None = None
    query: str | None = None
    body: str = '{"stock_delta": -1}'
    headers: dict[str, str] = {}  # noqa: RUF012  (never changed)
    settings: dict[str, Any] = {}  # noqa: RUF012
    before: int = 0  # the same request was made so many times
    away: bool = False  # the database
    bug: bool = False


WAYS = {
    "200": Way(),
    "304": Way(headers={"If_None_Match": "*"}),
    "400": Way(query="colour=red"),
    "401": Way(settings={"api_key": "open-sesame"}),
    "403": Way(settings={"host": "0.0.0.0"}),
    "404": Way(path="/products/99"),
    "409": Way(body='{"stock_delta": -13}'),
    "412": Way(headers={"If_Match": '"9"'}),
    "413": Way(body=" " * (api.MAX_BODY + 1)),
    "415": Way(headers={"Content_Type": "text/plain"}),
    "422": Way(body='{"price": -1, "name": "Elm desk"}'),
    "429": Way(settings={"rate_limit": 1.0, "rate_burst": 5}, before=5),
    "500": Way(bug=True),
    "503": Way(away=True),
}
QUERIES = {"/products/search": "name=desk&limit=1&include_total=true", "/products": "limit=1&sort=-name"}

ANSWERS = [
    (path, method, status, media_type)
    for path, method in OPERATIONS
    for status in DOCUMENT["paths"][path][method]["responses"]
    for media_type in documented(path, method, status).get("content", [""])
]


def fail(error: Exception) -> Callable[..., None]:
    def failing(*arguments: object, **named: object) -> None:
        raise error

    return failing


@pytest.fixture
def answered(
    desks: Service, monkeypatch: pytest.MonkeyPatch, path: str, method: str, status: str, media_type: str
) -> falcon.testing.Result:
    """What the app really answers, brought about for this status."""
    way = WAYS[status]
    desks.restart(**{"rate_limit": 100.0, **way.settings})
    for parse in ("parse_query", "parse_page") if way.bug else ():
        monkeypatch.setattr(api, parse, fail(KeyError("secret")))
    for work in ("read", "write") if way.away else ():
        monkeypatch.setattr(desks.database, work, fail(DatabaseUnavailable("away")))
    query = QUERIES.get(path, "") if way.query is None else way.query
    html = {"Accept": "text/html"} if (path, status) == ("/", "304") or media_type == "text/html" else {}
    body = {"Content_Type": "application/json"} if method == "patch" else {}
    for _ in range(way.before + 1):
        result = desks.request(
            method.upper(),
            way.path or path.format(id=1),
            query,
            way.body if method == "patch" else None,
            **{**body, **html, **way.headers},
        )
    return result


@pytest.mark.parametrize(("path", "method", "status", "media_type"), ANSWERS)
@one_engine
def test_each_documented_answer_is_given(
    answered: falcon.testing.Result, path: str, method: str, status: str, media_type: str
) -> None:
    response, headers = documented(path, method, status), {name.lower() for name in answered.headers}
    assert answered.status_code == int(status), answered.text
    assert headers <= {name.lower() for name in response["headers"]} | EVERY_ANSWER_HAS
    assert headers >= required(response)
    if media_type:
        assert answered.headers["content-type"].partition(";")[0] == media_type
    assert bool(answered.content) == (method != "head" and media_type != "")


@pytest.mark.parametrize(("path", "method", "status", "media_type"), ANSWERS)
@one_engine
def test_each_documented_answer_fits_its_schema(
    answered: falcon.testing.Result, fits: Fits, path: str, method: str, status: str, media_type: str
) -> None:
    response = documented(path, method, status)
    for name, header in response["headers"].items():
        if name in answered.headers:
            schema, value = resolved(header)["schema"], answered.headers[name]
            fits(schema, int(value) if schema["type"] == "integer" else value, name)
    if answered.content:
        body = answered.json if media_type.endswith("json") else answered.text
        fits(response["content"][media_type]["schema"], body, media_type)
        assert media_type != "application/problem+json" or answered.json["status"] == int(status)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@one_engine
def test_the_examples_of_requests_are_taken(service: Service, path: str, method: str) -> None:
    service.add(*[("Oak desk", "129.90", 12)] * 7)
    given = [
        (kind["in"], name, str(kind["example"])) for name, kind in parameters(path, method).items() if "example" in kind
    ]
    query = urlencode([(name, value.lower()) for place, name, value in given if place == "query"])
    headers = {name: value for place, name, value in given if place == "header" and name != "If-Match"}
    bodies = resolved(DOCUMENT["paths"][path][method].get("requestBody", {"content": {"": {"example": None}}}))
    for media_type, content in bodies["content"].items():
        for body in examples(content):
            sent = {**headers, **({"Content-Type": media_type} if media_type else {})}
            answer = service.request(method.upper(), path.format(id=7), query, body and json.dumps(body), **sent)
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@one_engine
def test_the_routes_with_a_cost_are_those_that_document_429(desks: Service, path: str, method: str) -> None:
    desks.restart(rate_limit=100.0)
    answer = desks.request(method.upper(), path.format(id=1), QUERIES.get(path, ""))
    assert ("RateLimit" in answer.headers) == ("429" in DOCUMENT["paths"][path][method]["responses"])


Fits = Callable[[dict[str, Any], Any, str], None]


@pytest.fixture(scope="module")
def fits() -> Fits:
    """A check that a value is what a schema describes, and has nothing that it does not."""
    jsonschema = pytest.importorskip("jsonschema_rs", reason="make contract has it")
    exact = json.loads(OPENAPI_FILE.read_bytes())["components"]
    for name in ("Product", "Page", "Index", "StockProblem", "FieldsProblem"):
        exact["schemas"][name]["unevaluatedProperties"] = False

    def check(schema: dict[str, Any], value: Any, where: str) -> None:
        closed = {"unevaluatedProperties": False} if schema.get("$ref", "").endswith("/Problem") else {}
        rules = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, **closed, "components": exact}
        validator = jsonschema.validator_for(rules, validate_formats=True)
        assert [f"{where}: {error.message}" for error in validator.iter_errors(value)] == []

    return check


# ---------------------------------------------------------------- refused before it belongs to an operation

REFUSED = {
    "BadRequest": b"GET /products HTTP/1.1\r\nName : value\r\n\r\n",
    "UnknownPath": b"GET /product HTTP/1.1\r\n\r\n",
    "MethodNotAllowed": b"DELETE /products/1 HTTP/1.1\r\n\r\n",
    "RequestTimeout": b"PATCH /products/1 HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
    "BodyTooLarge": b"PATCH /products/1 HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n",
    "HeadersTooLarge": b"GET /products HTTP/1.1\r\nName: " + b"x" * 262144,
    "NotImplemented": b"PATCH /products/1 HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    "Unavailable": b"GET /healthz HTTP/1.1\r\n\r\n",
}


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[tuple[str | None, int]]:
    """Where the real program listens, with less patience than it has."""
    hasty = tmp_path / "hasty.py"
    patience = f"api.REQUEST_TIMEOUT, api.QUEUE_TIMEOUT = 0.5, {-1 if name == 'Unavailable' else 3}"
    hasty.write_text(f"import inventory_api as api\n{patience}\napi.main()\n")
    monkeypatch.setattr(conftest, "PROGRAM", hasty)
    with conftest.running(cwd=tmp_path, env={"PYTHONPATH": str(OPENAPI_FILE.parent)}) as (url, _):
        yield urlsplit(url).hostname, urlsplit(url).port or 80


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_each_refusal_is_as_documented(address: tuple[str, int], fits: Fits, name: str) -> None:
    with socket.create_connection(address, timeout=10) as connection, http.client.HTTPResponse(connection) as answer:
        connection.sendall(REFUSED[name])
        answer.begin()
        response = DOCUMENT["components"]["responses"][name]
        ((media_type, content),) = response["content"].items()
        assert answer.status == examples(content)[0]["status"]
        assert answer.headers["Content-Type"] == media_type
        assert required(response) <= {header.lower() for header in answer.headers}
        fits(content["schema"], json.loads(answer.read()), name)


def test_the_refusals_are_told_in_words() -> None:
    assert set(re.findall(r"`([A-Z]\w+)`\)", DOCUMENT["info"]["description"])) == REFUSED.keys()
