"""Servers on this machine are found by the name of what they serve."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glyphrun_serve.announced import Announcement, SeveralServers, server_of, servers


def test_a_server_is_found_by_its_name_and_what_a_killed_one_left_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLYPHRUN_CACHE", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def address(given: str | None = None) -> str | None:
        found = server_of("shirts", given)
        return None if found is None else found.address

    assert servers() == [] and address() is None
    folder = tmp_path / "servers"
    folder.mkdir()
    ended = 2**22 + 1  # more than Linux gives
    for place, (name, process) in enumerate([("shirts", os.getpid()), ("lines", os.getpid()), ("shirts", ended)]):
        said = Announcement(name=name, address=f"127.0.0.1:{place}", process=process)
        (folder / f"{place}.json").write_text(said.model_dump_json())
    # Of another machine with the same home nothing is known here.
    elsewhere = Announcement(name="shirts", address="10.0.0.2:1", host="elsewhere", process=ended)
    (folder / "elsewhere.json").write_text(elsewhere.model_dump_json())
    assert address() == "127.0.0.1:0"
    assert len(list(folder.iterdir())) == 3
    assert address("10.0.0.1:6379") == "10.0.0.1:6379"
    (folder / "3.json").write_text((folder / "0.json").read_text())
    with pytest.raises(SeveralServers, match="Several servers of shirts.*--address"):
        address()
    # The address that is named then is known with the token that its Ray asks for.
    asking = Announcement(name="shirts", address="127.0.0.1:9", process=os.getpid(), auth="token")
    (folder / "9.json").write_text(asking.model_dump_json())
    assert server_of("shirts", "127.0.0.1:9") == asking
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert address() == "10.0.0.2:6379"
