"""The pointer to the current version of a name: a log of moves, each written once, of which the last one counts."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from glyphrun.store import Claim, Store
from glyphrun.versions import read_document, write_document

PATIENCE_S = 5.0  # how long a process may take from claiming a move to making it


class Move(BaseModel):
    """One move of the pointer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    at: datetime
    why: Literal["promotion", "rollback"]


@dataclass(frozen=True)
class Pointer:
    """NAME/history/NUMBER.json in a store, whose numbers are claimed in NAME/claims/history."""

    store: Store
    name: str

    def current(self) -> int | None:
        """The version that it points to, None before the first move. Raises RegistryError for a move that is unreadable."""
        files = self._files()
        return self._read(files[-1]).version if files else None

    def history(self) -> list[Move]:
        """All moves, oldest first. Raises RegistryError."""
        return [self._read(file) for file in self._files()]

    def exists(self) -> bool:
        return bool(self._files())

    def move(self, move: Move, *, instead_of: int | None = None) -> int:
        """Point elsewhere, unless it no longer points where it is said to (0 for nowhere), and say where it points then.

        Of several that move it instead of the same version, one does and the others are told of that one's version. Two
        can both be told of their own if one stalls for PATIENCE_S before its move; for everybody else there is one even so.
        """
        claim = self.store.claim(f"{self.name}/claims/history", 1 + max(self._numbers(), default=0))
        if instead_of is not None:
            self._await_earlier(claim)
        if instead_of is not None and instead_of != (self.current() or 0):
            self.store.delete(claim.path)
        else:
            write_document(self.store, f"{self.name}/history/{claim.number:08d}.json", move)
        return self.current() or 0

    def _await_earlier(self, claim: Claim) -> None:
        """Until those who claimed earlier moves have made them or given up, or are taken for dead."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            last = max(self._numbers(), default=0)
            if not any(last < number < claim.number for number in self.store.claimed(f"{self.name}/claims/history")):
                return
            time.sleep(0.05)

    def _files(self) -> list[str]:
        return [file for file in self.store.names(f"{self.name}/history") if re.fullmatch(r"\d{8,}\.json", file)]

    def _numbers(self) -> list[int]:
        return [int(file.removesuffix(".json")) for file in self._files()]

    def _read(self, file: str) -> Move:
        advice = "remove it, and what was current before is so again"
        return read_document(self.store, f"{self.name}/history/{file}", Move, advice)


def line_of(moves: list[Move]) -> list[int]:
    """The versions that led to the current one: a rollback goes back along them."""
    line: list[int] = []
    for move in moves:
        if move.why == "rollback" and move.version in line:
            del line[line.index(move.version) + 1 :]
        elif line[-1:] != [move.version]:
            line.append(move.version)
    return line
