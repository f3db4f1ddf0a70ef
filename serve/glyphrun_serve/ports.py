"""Ports of this machine on which nothing listens, for processes that take seconds until they do."""

from __future__ import annotations

import errno
import socket
from random import Random, SystemRandom

from glyphrun_serve.serve_error import ServeError

# Between those of Ray's workers and those that Linux gives to connections, one of which could have it before the listener.
# Servers and what stands beside them do not come from the same part, since none is held until it is used.
SERVERS, BESIDE = range(20_000, 25_000), range(25_000, 30_000)


def free_port(host: str, port: int, chance: Random = SystemRandom()) -> int:
    """The port if nothing listens on it, or any free one for 0. Raises ServeError if it is taken."""
    if port == 0:
        return free_ports(1, SERVERS, host, chance)[0]
    error = _taken(host, port)
    if error is not None:
        message = f"{host}:{port} cannot be listened on ({error.strerror}); choose another port, or 0 for any."
        raise ServeError(message) from error
    return port


def free_ports(count: int, among: range = BESIDE, host: str = "", chance: Random = SystemRandom()) -> list[int]:
    """Different free ones; by chance, so that servers that start at once do not want the same. Raises ServeError."""
    found: list[int] = []
    for port in chance.sample(among, len(among)):
        error = _taken(host, port)
        if error is None:
            found.append(port)
        elif error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise ServeError(f"{host} cannot be listened on ({error.strerror})") from error
        if len(found) == count:
            return found
    raise ServeError(f"Fewer than {count} ports of {among.start} to {among.stop - 1} are free: name one with --port")


def _taken(host: str, port: int) -> OSError | None:
    """Why nothing can listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
