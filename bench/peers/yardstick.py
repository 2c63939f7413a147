"""The yardstick: Falcon on waitress, or on granian, answering everything with as many bytes as BODY_SIZE says.

waitress has the settings that inventory_api.py gives it; nothing is logged.
"""

from __future__ import annotations

import os
import sys

import falcon
import waitress

BODY = b"x" * int(os.environ["BODY_SIZE"])


def answer(req: falcon.Request, resp: falcon.Response) -> None:
    resp.data = BODY


app = falcon.App()
app.add_sink(answer, "/")

if __name__ == "__main__":
    waitress.serve(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        threads=8,
        ident=None,
        clear_untrusted_proxy_headers=False,
        max_request_body_size=1024 * 1024,
        connection_limit=10_000,
        asyncore_use_poll=True,
        _quiet=True,
    )
