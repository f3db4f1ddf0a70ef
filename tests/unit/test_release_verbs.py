"""What ``glyphrun deploy`` refuses before it asks a server anything."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from commands import refusal
from glyphrun.registry import Registry
from glyphrun_serve.ports import free_ports
from tiny_bundles import save_tiny_bundle


@pytest.fixture
def registry(tmp_path: Path) -> list[str]:
    bundle = save_tiny_bundle(tmp_path / "bundle", "query-digits-nano")
    Registry(tmp_path / "registry").promote(bundle, "tiny", at=datetime(2026, 1, 1, tzinfo=UTC))
    return ["--registry", str(tmp_path / "registry")]


def test_where_nobody_listens_there_is_no_server_and_nobody_waits_for_one(registry: list[str]) -> None:
    (port,) = free_ports(1)
    told = refusal("deploy", "tiny", "--address", f"127.0.0.1:{port}", *registry)
    assert f"There is no Ray to be reached at 127.0.0.1:{port}" in told and "--address" in told


def test_what_nothing_would_be_done_with_is_refused(registry: list[str]) -> None:
    assert "exclude each other" in refusal("deploy", "tiny", "--canary", "5", "--shadow", *registry)
    assert "name one of them" in refusal("deploy", "tiny", "--for", "5", *registry)
