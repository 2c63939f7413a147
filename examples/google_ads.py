"""fetch_data(date) on the official Google Ads client.

    pip install google-ads==34.0.0
    export GOOGLE_ADS_CUSTOMER_IDS=1234567890,2345678901
    python fetch_ads.py --backfill ./data --fetcher examples/google_ads.py:fetch_data

The client takes its configuration from google-ads.yaml, in the home folder or where the variable
GOOGLE_ADS_CONFIGURATION_FILE_PATH says, or else from the GOOGLE_ADS_ variables of the environment. A
developer token is used if there is one. Add --timezone, the zone of the account. Also from the environment:

    GOOGLE_ADS_CUSTOMER_IDS   the accounts, separated by commas; one that fails fails the day
    GOOGLE_ADS_QUERY          GAQL; {date} stands for the day (campaigns by device)
    GOOGLE_ADS_TIMEOUT        seconds for the answer of one account: the client itself waits for ever (120)
"""

import datetime as dt
import functools
import os
from collections.abc import Iterator
from typing import Any

from google.ads.googleads.client import GoogleAdsClient
from google.ads.googleads.errors import GoogleAdsException
from google.api_core.exceptions import ResourceExhausted

import fetch_ads

QUERY = """
    SELECT customer.id, segments.date, segments.device, campaign.id, campaign.name,
           metrics.impressions, metrics.clicks, metrics.cost_micros, metrics.conversions
    FROM campaign
    WHERE segments.date = '{date}'
"""


@functools.cache
def client() -> Any:
    """One client, and one channel, for all threads."""
    path = os.environ.get("GOOGLE_ADS_CONFIGURATION_FILE_PATH", os.path.expanduser("~/google-ads.yaml"))
    if os.path.exists(path):
        return GoogleAdsClient.load_from_storage(path)
    return GoogleAdsClient.load_from_env()


def customers() -> list[str]:
    """The accounts to ask, as the API wants them: digits only."""
    names = os.environ.get("GOOGLE_ADS_CUSTOMER_IDS", "").replace("-", "").split(",")
    if not all(name.strip().isdigit() for name in names):
        raise ValueError("GOOGLE_ADS_CUSTOMER_IDS must name the accounts, such as 1234567890,2345678901")
    return [name.strip() for name in names]


def fetch_data(date: dt.date) -> Iterator[dict[str, object]]:
    """The rows of one day, account after account, a column for each field of the query."""
    query = os.environ.get("GOOGLE_ADS_QUERY", QUERY).replace("{date}", str(date))
    timeout = float(os.environ.get("GOOGLE_ADS_TIMEOUT", "120"))
    service = client().get_service("GoogleAdsService")
    for customer in customers():
        try:
            for batch in service.search_stream(customer_id=customer, query=query, timeout=timeout):
                fields = list(batch.field_mask.paths)
                for row in batch.results:
                    yield {field: cell(getattr(row, "_pb", row), field) for field in fields}
        except ResourceExhausted as error:
            raise fetch_ads.RateLimitError(retry_delay(error), f"account {customer}: {error.message}") from error
        except GoogleAdsException as error:
            error.failure.errors[0].message += f" (account {customer})"
            raise


def cell(message: Any, field: str) -> object:
    """The value of a field such as metrics.clicks; None if the answer has none, an enum by its name."""
    for name in field.split("."):
        fields = message.DESCRIPTOR.fields_by_name
        descriptor = fields.get(name) or fields[f"{name}_"]  # ad.type is called type_ in Python
        if descriptor.has_presence and not message.HasField(descriptor.name):
            return None
        message = getattr(message, descriptor.name)
    return descriptor.enum_type.values_by_number[message].name if descriptor.enum_type else message


def retry_delay(error: ResourceExhausted) -> float | None:
    """The seconds a quota error asks for: they stand in the failure that comes as bytes behind the answer."""
    for key, value in error.response.trailing_metadata() or ():
        if key.endswith("googleadsfailure-bin"):
            failure = type(client().get_type("GoogleAdsFailure")).FromString(value)
            delays = [one.details.quota_error_details.retry_delay.ToTimedelta() for one in failure.errors]
            return max((delay.total_seconds() for delay in delays), default=0.0) or None
    return None
