"""What many tests share."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from glyphrun.data.digits import digit_pools, mnist_digits
from glyphrun.data.shards import write_samples
from glyphrun.data.simulate import SimulatorSettings, plan_tracklets, render_plan
from glyphrun.text import DIGITS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first: processes that take files in turn then end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers that lies beside a developer's checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; it holds real data and reference numbers")
    return folder


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated data set: train 60, val 20, test 20 and unseen 20 tracklets. Read it; copy it to change it."""
    images, labels = mnist_digits()
    settings = SimulatorSettings()
    counts = {"train": 60, "val": 20, "test": 20, "unseen": 20}
    plans = plan_tracklets(digit_pools(labels, seed=0), counts, settings, seed=0)
    folder = tmp_path_factory.mktemp("data") / "small"
    write_samples(
        (render_plan(plan, images[list(plan.digit_images)], settings) for plan in plans),
        folder,
        name="small",
        licence="none, it is made for tests",
        description="Simulated shirt numbers.",
        charset=DIGITS,
    )
    return folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URI of a new bucket on a server of this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/models", method="PUT")).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        yield f"s3://models/{{}}?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()
