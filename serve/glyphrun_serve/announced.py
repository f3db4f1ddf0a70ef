"""Servers that `glyphrun serve` runs on this machine, so that another process finds the Ray of each.

Knows nothing of Ray, which reads once, when it is imported, whether it has to show a token.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gethostname
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glyphrun.store import cache_home

FOLDER, AUTH = "servers", "RAY_AUTH_MODE"


class SeveralServers(ValueError):
    """It is not known which server is meant; the message names them."""


class Announcement(BaseModel):
    """A server and how its Ray is reached. host, process: the machine and the id of the one that ends it.

    url: None if it was not announced but named by its Ray's address alone. address: of its Ray. auth: RAY_AUTH_MODE of it:
    `ray.init` asks for a token by default where it starts a Ray, but gives none to a Ray whose address it is told.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    address: str
    url: str | None = None
    host: str = Field(default_factory=gethostname)
    process: int = 0
    auth: str | None = None


@contextmanager
def announced(name: str, url: str, address: str, home: Path | None = None) -> Iterator[None]:
    """Let others find a server that this process runs. home: $GLYPHRUN_CACHE or ~/.cache/glyphrun if it is None."""
    process = os.getpid()
    said = Announcement(name=name, address=address, url=url, process=process, auth=os.environ.get(AUTH))
    folder = (home or cache_home()) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file, aside = folder / f"{said.host}-{process}.json", folder / f".{process}.{uuid4().hex}.part"
    aside.write_text(said.model_dump_json(), encoding="utf-8")
    os.replace(aside, file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def servers(home: Path | None = None) -> list[Announcement]:
    """Those that run on this machine; what a process that was killed has left is removed."""
    found = []
    for file in sorted(((home or cache_home()) / FOLDER).glob("*.json")):
        with suppress(OSError, ValidationError):  # its server has just ended
            said = Announcement.model_validate_json(file.read_bytes())
            if said.host != gethostname():  # of another machine that has the same home
                continue
            if _runs(said.process):
                found.append(said)
            else:
                file.unlink(missing_ok=True)
    return found


def server_of(name: str, address: str | None) -> Announcement | None:
    """The server of a name: on the Ray that is given or that RAY_ADDRESS says, or the one server on this machine.

    None if no server of this name runs here. Raises SeveralServers.
    """
    given = address or os.environ.get("RAY_ADDRESS")
    here = servers()
    if given:
        # One that `glyphrun serve` runs here is known to ask for a token.
        return next((server for server in here if server.address == given), Announcement(name=name, address=given))
    found = [server for server in here if server.name == name]
    if len(found) > 1:
        known = ", ".join(f"{server.address} ({server.url})" for server in found)
        raise SeveralServers(
            f"Several servers of {name} run on this machine; name the Ray of one with --address: {known}"
        )
    return found[0] if found else None


def show_token(server: Announcement) -> None:
    """Have this process show Ray's token to a server that asks for it; to be called before Ray is imported."""
    if server.auth is not None:
        os.environ.setdefault(AUTH, server.auth)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
