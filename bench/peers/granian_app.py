"""The API as any WSGI server can run it: `app`, with its settings from the environment and its log on stderr."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from inventory_api import create_app, open_database, read_settings

settings = read_settings([], os.environ)
app = create_app(settings, open_database(settings.database_url), sys.stderr.write)
