"""What tests under a real Ray share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A Ray of two processors for the tests of one file."""
    with pytest.MonkeyPatch.context() as patch:
        # Train asks every two seconds what has become of its workers, and a trial's end waits for that.
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process for each start; no node here is taken back
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
        yield
        ray.shutdown()
