"""Who may write: with the API key where there is one, else only from this machine."""

import pytest

from tests.api.conftest import Service, one_engine

CHANGE = '{"stock_delta": -1}'


@one_engine
@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_a_loopback_host_writes_are_open(desks: Service, host: str) -> None:
    desks.restart(host=host)
    assert desks.patch(1, CHANGE).status_code == 200


@one_engine
@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "10.0.0.1", "128.0.0.1", "2001:db8::1", "example.org",
    "localhost.example.org", "::ffff:8.8.8.8", "127.0.0.1.example.org"]
)  # fmt: skip
def test_on_any_other_host_writes_are_off_without_a_key(desks: Service, host: str) -> None:
    desks.restart(host=host)
    refused = desks.patch(1, CHANGE)
    assert refused.status_code == 403
    assert "API_KEY" in refused.json["detail"]
    assert desks.get("/products/1").json["version"] == 1


@one_engine
def test_where_writes_are_off_a_key_opens_nothing(desks: Service) -> None:
    desks.restart(host="0.0.0.0")
    for offered in ("Bearer ", "Bearer None", "Bearer null", "Bearer x"):
        assert desks.patch(1, CHANGE, Authorization=offered).status_code == 403


@one_engine
@pytest.mark.parametrize("proxy", ["127.0.0.1", "10.0.0.9", "*"])
def test_behind_a_proxy_loopback_means_nothing(desks: Service, proxy: str) -> None:
    desks.restart(trusted_proxy=proxy)
    assert desks.patch(1, CHANGE).status_code == 403
    desks.restart(trusted_proxy=proxy, api_key="key")
    assert desks.patch(1, CHANGE, Authorization="Bearer key").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_key_opens_writes_on_every_host(desks: Service, host: str) -> None:
    desks.restart(host=host, api_key="open-sesame")
    assert desks.patch(1, CHANGE, Authorization="Bearer open-sesame").status_code == 200
    assert desks.patch(1, CHANGE).status_code == 401


@one_engine
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_be_in_any_case(desks: Service, scheme: str) -> None:
    desks.restart(api_key="Key")
    assert desks.patch(1, CHANGE, Authorization=f"{scheme} Key").status_code == 200


@one_engine
@pytest.mark.parametrize(
    "offered",
    ["", "Bearer", "Bearer ", "Bearer  ", "Bearer open", "Bearer open-sesame1", "Bearer OPEN-SESAME",
     "Bearer open-sesame,", "open-sesame",
     "Basic open-sesame", "Basic b3Blbi1zZXNhbWU6", "Token open-sesame", "Beareropen-sesame",
     "Bearer open-sesame open-sesame",
     "Bearer: open-sesame", 'Bearer "open-sesame"', "Bearer \xe9", "Bearer open-sesam\xe9",
     "Bearer open-sesame, Bearer x", "Bearer " + "x" * 10_000],
    ids=lambda text: ascii(text)[:40],
)  # fmt: skip
def test_without_the_very_key_a_write_is_refused(desks: Service, offered: str) -> None:
    desks.restart(api_key="open-sesame")
    refused = desks.patch(1, CHANGE, Authorization=offered)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert "sesame" not in refused.text
    assert desks.get("/products/1").json["version"] == 1


@one_engine
@pytest.mark.parametrize("settings", [{"api_key": "key"}, {"host": "0.0.0.0"}, {"trusted_proxy": "127.0.0.1"}])
def test_reads_need_no_key(desks: Service, settings: dict[str, str]) -> None:
    desks.restart(**settings)
    for path in ("/", "/healthz", "/readyz", "/products", "/products/1"):
        assert desks.get(path).status_code == 200
    assert desks.get("/products/search", "name=desk").status_code == 200
    assert desks.get("/products/1", Authorization="Bearer wrong").status_code == 200
