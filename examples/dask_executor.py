"""An executor for days that outgrow one machine: a Dask cluster.

    pip install 'distributed==2026.8.0'
    python fetch_ads.py --backfill /shared/data --workers 32 --fetcher my_module:fetch_data \
        --executor examples/dask_executor.py:cluster

DASK_SCHEDULER_ADDRESS names the scheduler (tcp://host:8786); without it two processes are started on this
machine. The workers write their temporary files to the folder themselves, so it must be one that they share,
under the same path, and they must be able to import the fetcher. --workers should not exceed the threads of
the cluster: the timeout of a call counts from when it is handed over.
"""

import os
from concurrent.futures import Executor

from distributed import Client, LocalCluster


def cluster() -> Executor:
    """What `--executor` asks for: a factory of a concurrent.futures.Executor."""
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    if not address:
        address = LocalCluster(n_workers=2, threads_per_worker=4, dashboard_address=None)
    executor: Executor = Client(address).get_executor(pure=False, retries=0)
    return executor
