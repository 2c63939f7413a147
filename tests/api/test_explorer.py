"""What `/` answers: the page to a browser, the index to a program."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import falcon
import pytest

from inventory_api import INDEX, PAGE_FILE, page_policy
from tests.api.conftest import Service, one_engine

BROWSERS = {
    "Chromium": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8",
    "Firefox": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "a reader": "text/html",
    "one that takes both": "application/json;q=0.5, text/html",
}
PROGRAMS = ["*/*", "application/json", "application/json, text/html", "text/html;q=0.9, application/json"]
PROGRAMS += ["application/json, */*;q=0.1", "text/plain", "text/html;q=0", "nonsense", ""]
BROWSER = BROWSERS["Chromium"]


def policy_of(service: Service) -> dict[str, str]:
    header = service.get("/", Accept=BROWSER).headers["Content-Security-Policy"]
    return dict(directive.split(" ", 1) for directive in header.split("; "))


@pytest.mark.parametrize("accept", BROWSERS.values(), ids=BROWSERS)
@one_engine
def test_a_browser_gets_the_page(service: Service, accept: str) -> None:
    result = service.get("/", Accept=accept)
    assert (result.status_code, result.content) == (200, PAGE_FILE.read_bytes())
    assert result.headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("accept", PROGRAMS)
@one_engine
def test_a_program_gets_the_index(service: Service, accept: str) -> None:
    result = service.get("/", Accept=accept)
    assert (result.status_code, result.content) == (200, json.dumps(INDEX).encode())
    assert result.headers["Content-Type"] == "application/json"
    assert "Content-Security-Policy" not in result.headers


@one_engine
def test_who_says_nothing_gets_the_index(service: Service) -> None:
    assert service.get("/").content == json.dumps(INDEX).encode()


@pytest.mark.parametrize("accept", [BROWSER, "application/json"])
@one_engine
def test_caches_are_told_that_it_depends_on_accept(service: Service, accept: str) -> None:
    result = service.get("/", Accept=accept)
    assert result.headers["Vary"] == "Accept"
    assert result.headers["Cache-Control"] == "private, no-cache"
    assert service.get("/", "x=1", Accept="application/json").headers["Vary"] == "Accept"


@pytest.mark.parametrize("query", ["name=oak&sort=-price", "utm_source=x", "name=a&name=b", "name=", "name=%FF"])
@one_engine
def test_the_query_is_the_affair_of_the_page_but_none_of_the_index(service: Service, query: str) -> None:
    assert service.get("/", query, Accept=BROWSER).content == PAGE_FILE.read_bytes()
    assert service.get("/", query, Accept="application/json").status_code == 400


@one_engine
def test_head_is_get_without_the_body(service: Service) -> None:
    got, head = service.get("/", Accept=BROWSER), service.request("HEAD", "/", Accept=BROWSER)
    assert (head.status_code, head.text) == (200, "")
    for name in ("Content-Type", "Content-Length", "Content-Security-Policy", "Vary", "ETag", "Cache-Control"):
        assert head.headers[name] == got.headers[name]


@one_engine
def test_a_page_not_changed_is_not_sent_again(service: Service) -> None:
    tag = service.get("/", Accept=BROWSER).headers["ETag"]
    again = service.get("/", Accept=BROWSER, If_None_Match=tag)
    assert (again.status_code, again.text, again.headers["ETag"]) == (304, "", tag)
    assert again.headers["Vary"] == "Accept"
    assert service.get("/", Accept="application/json", If_None_Match=tag).status_code == 200


@one_engine
def test_the_page_costs_no_tokens(service: Service) -> None:
    service.restart(rate_limit=1.0, rate_burst=5)
    assert "RateLimit" not in service.get("/", Accept=BROWSER).headers


@one_engine
def test_nothing_may_run_or_load_but_what_stands_in_the_page(service: Service) -> None:
    policy = policy_of(service)
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for directive in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[directive] == "'none'"
    for element in ("script", "style"):
        (text,) = re.findall(f"<{element}>(.*?)</{element}>", PAGE_FILE.read_text("utf-8"), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{element}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in str(policy)


def test_the_policy_follows_the_page() -> None:
    first, second = page_policy("<script>a()</script>"), page_policy("<script>b()</script>")
    assert first != second
    assert "style-src 'none'" in first


def test_the_page_needs_nothing_but_itself() -> None:
    page = PAGE_FILE.read_text("utf-8")
    assert re.findall(r"https?:|@import|\burl\(|import\(|\bsrc=", page) == []
    assert set(re.findall(r'href="([^"]{1,10})', page)) == {"data:image", "."}


def test_the_page_makes_no_html_of_text() -> None:
    page = PAGE_FILE.read_text("utf-8")
    assert (
        re.findall(r"(?i)innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|\beval\b|Function\(", page) == []
    )
    assert re.findall(r"(?i)<[^>]*\s(on[a-z]+|style)=", page) == []  # the policy would stop them


@one_engine
def test_other_routes_answer_a_browser_as_they_answer_programs(desks: Service) -> None:
    assert desks.get("/products/1", Accept=BROWSER).headers["Content-Type"] == falcon.MEDIA_JSON
    assert desks.get("/nope", Accept=BROWSER).headers["Content-Type"] == "application/problem+json"
