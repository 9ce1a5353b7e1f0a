"""What the tests with Ray share. They have an environment of their own: `make test-ray`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest

from ray_cluster import HEAD, LocalCluster

# Before Ray is imported: it reports nothing to anybody, writes no token into the home folder, waits
# for nodes on a busy machine, and takes no warning of its own as an error.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_raylet_start_wait_time_s": "120",
        # One proxy sends to replicas of all nodes.
        "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
        # A node that is gone is found to be gone within seconds.
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "4",
    }
)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors here too, except what other libraries say of themselves."""
    for line in (
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
        "ignore::ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head alone, and this process connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=HEAD)
    ray.init(address=made.address, log_to_driver=False)
    try:
        yield LocalCluster(made)
    finally:
        ray.shutdown()
        made.shutdown()
