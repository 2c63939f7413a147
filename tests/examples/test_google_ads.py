"""examples/google_ads.py with the unmodified client, against a local server that speaks its own protos."""

import csv
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="google-ads is not installed (make test-examples installs it)")
pytest.importorskip("google.ads.googleads", reason="google-ads is not installed (make test-examples installs it)")

from google.ads.googleads.v26.enums.types.device import DeviceEnum  # noqa: E402
from google.ads.googleads.v26.errors.types.errors import GoogleAdsFailure  # noqa: E402
from google.ads.googleads.v26.services.types import google_ads_service as protos  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
METHOD = "/google.ads.googleads.v26.services.GoogleAdsService/SearchStream"
FAILURE = "google.ads.googleads.v26.errors.googleadsfailure-bin"
FIELDS = ["segments.date", "segments.device", "campaign.id", "campaign.name", "metrics.clicks", "campaign.status"]


class Api(grpc.GenericRpcHandler):  # type: ignore[name-defined]
    """Answers a query as the script says for its day; every call takes one word of it, but for the last."""

    def __init__(self) -> None:
        self.script: dict[str, list[str]] = {}
        self.bad_customer = ""
        self.calls: list[tuple[str, float]] = []
        self.metadata: dict[str, str] = {}

    def service(self, details: Any) -> Any:
        assert details.method == METHOD
        self.metadata = dict(details.invocation_metadata)
        return grpc.unary_stream_rpc_method_handler(
            self.answer, protos.SearchGoogleAdsStreamRequest.deserialize, protos.SearchGoogleAdsStreamResponse.serialize
        )

    def answer(self, request: Any, context: Any) -> Iterator[Any]:
        day = request.query.split("'")[1]
        self.calls.append((day, time.monotonic()))
        todo = self.script.get(day) or ["rows"]
        word = todo.pop(0) if len(todo) > 1 else todo[0]
        if request.customer_id == self.bad_customer:
            self.fail(context, grpc.StatusCode.INVALID_ARGUMENT, {"request_error": "INVALID_CUSTOMER_ID"})
        if word == "hang":
            time.sleep(3)
        if word == "quota":
            details = {"quota_error_details": {"retry_delay": {"seconds": 1}}}
            self.fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, {"quota_error": "RESOURCE_EXHAUSTED"}, details)
        if word == "quota without delay":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many requests")
        if word == "expired":
            self.fail(context, grpc.StatusCode.UNAUTHENTICATED, {"authentication_error": "OAUTH_TOKEN_EXPIRED"})
        yield self.batch(day, request.customer_id, 1)
        if word == "break":
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        yield self.batch(day, request.customer_id, 2)

    def fail(self, context: Any, code: Any, error: dict[str, str], details: Any = None) -> None:
        failure = GoogleAdsFailure(
            errors=[{"error_code": error, "message": f"It is {error}", "details": details or {}}]
        )
        context.set_trailing_metadata([(FAILURE, GoogleAdsFailure.serialize(failure))])
        context.abort(code, "The request failed")

    def batch(self, day: str, customer: str, campaign: int) -> Any:
        row = {
            "segments": {"date": day, "device": DeviceEnum.Device.MOBILE},
            "campaign": {"id": campaign, "name": f"Campaign of {customer}"},
            "metrics": {"clicks": 7 * campaign},
        }
        return protos.SearchGoogleAdsStreamResponse(results=[row], field_mask={"paths": FIELDS})


class TokenServer(http.server.BaseHTTPRequestHandler):
    """An OAuth token endpoint; `reply` is its status and its answer."""

    reply: tuple[int, dict[str, object]] = (200, {"access_token": "good", "expires_in": 3600, "token_type": "Bearer"})

    def do_POST(self) -> None:
        status, answer = type(self).reply
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class Stand:
    """Both servers, the configuration of the client, and the command."""

    def __init__(self, home: Path, api: Api, tokens: type[TokenServer], environment: dict[str, str]) -> None:
        self.home, self.api, self.tokens, self.environment = home, api, tokens, environment

    def run(self, *words: str) -> tuple[int, str, str]:
        line = [sys.executable, str(ROOT / "fetch_ads.py"), *words, "data", "--timezone", "UTC", "--fetcher"]
        line.append(f"{ROOT / 'examples' / 'google_ads.py'}:fetch_data")
        environment = {**os.environ, **self.environment}
        run = subprocess.run(line, cwd=self.home, env=environment, capture_output=True, text=True, timeout=120)
        assert "Traceback" not in run.stderr
        return run.returncode, run.stdout, run.stderr

    def rows(self) -> list[dict[str, str]]:
        with (self.home / "data" / "ads.csv").open(newline="") as file:
            return list(csv.DictReader(file))


def certificate(home: Path) -> tuple[bytes, bytes]:
    key, cert = home / "key.pem", home / "cert.pem"
    words = f"req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {cert} -days 2 -subj /CN=localhost"
    line = ["openssl", *words.split(), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(line, check=True, capture_output=True)
    return key.read_bytes(), cert.read_bytes()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    key, cert = certificate(tmp_path)
    api = Api()
    server = grpc.server(ThreadPoolExecutor(16), handlers=[api])
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key, cert)]))
    server.start()
    handler = type("Tokens", (TokenServer,), {})
    tokens = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=tokens.serve_forever, daemon=True).start()
    account = {
        "type": "service_account",
        "client_email": "fetcher@localhost",
        "token_uri": f"http://127.0.0.1:{tokens.server_port}/token",
        "private_key": key.decode(),
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    (tmp_path / "google-ads.yaml").write_text(
        f"json_key_file_path: {tmp_path / 'account.json'}\nuse_proto_plus: false\nendpoint: localhost:{port}\n"
    )
    environment = {
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / "cert.pem"),
        "GOOGLE_ADS_CONFIGURATION_FILE_PATH": str(tmp_path / "google-ads.yaml"),
        "GOOGLE_ADS_CUSTOMER_IDS": "123-456-7890",
        "GOOGLE_ADS_TIMEOUT": "1",
        "no_proxy": "localhost,127.0.0.1",
    }
    yield Stand(tmp_path, api, handler, environment)
    server.stop(None).wait()
    tokens.shutdown()
    tokens.server_close()


@pytest.mark.parametrize("proto_plus", ["true", "false"])
def test_rows_have_the_columns_of_the_query(stand: Stand, proto_plus: str) -> None:
    config = stand.home / "google-ads.yaml"
    config.write_text(config.read_text().replace("plus: false", f"plus: {proto_plus}"))
    code, _, err = stand.run("2023-01-01", "2023-01-03")
    assert code == 0, err
    rows = stand.rows()
    assert list(rows[0]) == ["date", *FIELDS]
    assert [row["date"] for row in rows] == [f"2023-01-0{n}" for n in (1, 1, 2, 2, 3, 3)]
    assert list(rows[1].values())[2:] == ["MOBILE", "2", "Campaign of 1234567890", "14", "UNSPECIFIED"]


def test_a_developer_token_is_sent_where_there_is_one(stand: Stand) -> None:
    stand.run("2023-01-01", "2023-01-01")
    assert "developer-token" not in stand.api.metadata
    with (stand.home / "google-ads.yaml").open("a") as file:
        file.write("developer_token: secret\n")
    stand.run("2023-01-02", "2023-01-02")
    assert stand.api.metadata["developer-token"] == "secret"


def test_the_delay_of_a_quota_error_is_waited_for(stand: Stand) -> None:
    stand.api.script["2023-01-01"] = ["quota", "rows"]
    code, out, _ = stand.run("2023-01-01", "2023-01-01")
    assert (code, len(stand.rows())) == (0, 2)
    assert "1 rate limits" in out
    (_, first), (_, second) = stand.api.calls
    assert 1.0 <= second - first < 3.0


def test_a_delay_beyond_max_wait_ends_the_run(stand: Stand) -> None:
    stand.api.script["2023-01-01"] = ["quota"]
    code, _, err = stand.run("2023-01-01", "2023-01-01", "--max-wait", "0.5")
    assert code == 4
    assert "account 1234567890" in err


def test_a_quota_error_without_a_delay_is_a_rate_limit_too(stand: Stand) -> None:
    stand.api.script["2023-01-01"] = ["quota without delay", "rows"]
    assert stand.run("2023-01-01", "2023-01-01", "--retries", "0")[0] == 0


@pytest.mark.parametrize("trouble", ["hang", "break"])
def test_a_deadline_or_a_broken_stream_is_tried_again(stand: Stand, trouble: str) -> None:
    stand.api.script["2023-01-01"] = [trouble, "rows"]
    code, out, err = stand.run("2023-01-01", "2023-01-01")
    assert (code, len(stand.rows())) == (0, 2), err
    assert "1 retries" in out


def test_an_expired_token_stops_the_run(stand: Stand) -> None:
    for n in range(1, 10):
        stand.api.script[f"2023-01-0{n}"] = ["expired"]
    code, _, err = stand.run("2023-01-01", "2023-01-09", "--workers", "2")
    assert code == 3
    assert "renew" in err
    assert len(stand.api.calls) == 2


def test_a_dead_refresh_token_stops_the_run(stand: Stand) -> None:
    stand.tokens.reply = (400, {"error": "invalid_grant", "error_description": "Token has been expired or revoked."})
    code, _, err = stand.run("2023-01-01", "2023-01-09", "--workers", "2")
    assert code == 3
    assert "invalid_grant" in err
    assert stand.api.calls == []


def test_a_token_endpoint_out_of_order_is_tried_again(stand: Stand) -> None:
    stand.tokens.reply = (503, {})
    code, out, _ = stand.run("2023-01-01", "2023-01-01", "--retries", "1", "--timeout", "20")
    assert code == 1
    assert "1 retries" in out


def test_one_bad_account_of_several_fails_the_day(stand: Stand) -> None:
    stand.environment["GOOGLE_ADS_CUSTOMER_IDS"] = "1111111111,2222222222"
    stand.api.bad_customer = "2222222222"
    code, out, _ = stand.run("2023-01-01", "2023-01-01")
    assert code == 1
    assert "INVALID_CUSTOMER_ID" in out
    assert "2222222222" in out
    assert stand.rows() == []
