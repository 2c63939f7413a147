"""examples/dask_executor.py on a real local cluster of two worker processes."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="dask is not installed (make test-examples installs it)")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "fetch_ads.py"), "2023-01-01", "2023-01-10", *words]
    executor = f"{ROOT / 'examples' / 'dask_executor.py'}:cluster"
    return subprocess.run([*line, "--executor", executor], cwd=home, capture_output=True, text=True, timeout=120)


def test_a_cluster_fetches_what_threads_fetch(tmp_path: Path) -> None:
    done = run(tmp_path, "data")
    assert done.returncode == 0, done.stderr
    line = [sys.executable, str(ROOT / "fetch_ads.py"), "2023-01-01", "2023-01-10", "threads"]
    subprocess.run(line, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "data" / "ads.csv").read_bytes() == (tmp_path / "threads" / "ads.csv").read_bytes()


def test_two_processes_share_the_days(tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text("import os\ndef fetch_data(day):\n    return [{'pid': os.getpid(), 'a': 1}]\n")
    done = run(tmp_path, "data", "--fetcher", f"{tmp_path / 'source.py'}:fetch_data")
    assert done.returncode == 0, done.stderr
    pids = {line.split(",")[1] for line in (tmp_path / "data" / "ads.csv").read_text().splitlines()[1:]}
    assert len(pids) == 2


def test_a_fetcher_that_raises_what_cannot_be_pickled_is_reported(tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text(
        "import fetch_ads\nclass Odd(Exception):\n    def __reduce__(self):\n        raise TypeError('no')\n"
        "def fetch_data(day):\n    if day.day == 3:\n        raise fetch_ads.OAuthError('expired')\n"
        "    raise Odd('bug')\n"
    )
    done = run(tmp_path, "data", "--fetcher", f"{tmp_path / 'source.py'}:fetch_data")
    assert done.returncode == 3, done.stderr
    assert "Odd: bug" in done.stdout
