"""What a registry keeps of a version beside its bundle: how it was promoted, and what it reads."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from glyphrun.store import Store

Document = TypeVar("Document", bound=BaseModel)


class RegistryError(ValueError):
    """A name or version that the registry does not have or cannot take, or a file of it that cannot be read."""


class Promotion(BaseModel):
    """How a version came about.

    bundle: sha256 of the bundle's SHA256SUMS, and so of all of it. run: the folder that was promoted. forced: whatever the
    gate found, for some reason if one was given. gate: its figures, null for what was promoted past it, as by the demo.
    compared_with: the version that had to be current still for this one to become so, 0 for none, null for any.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: int
    at: datetime
    bundle: str
    run: str
    experiment_hash: str | None = None
    forced: bool = False
    reason: str | None = None
    compared_with: int | None = None
    gate: dict[str, Any] | None = None


class Readings(BaseModel):
    """What a version and the champion that it was compared with read on the same items of a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    dataset_hash: str
    split: str
    sample_ids: tuple[str, ...]
    truths: tuple[str, ...]
    candidate: tuple[str, ...]
    champion: tuple[str, ...]


class Deployment(BaseModel):
    """That a running server was given a version. settings, options: what it serves it with, as the server knows them.

    how: serve is what it was started with. share: percent of the items of a canary. replaced: the version that it had before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    at: datetime
    how: Literal["serve", "deploy", "canary", "shadow", "rollback"]
    replaced: str | None = None
    share: float | None = None
    settings: dict[str, Any]
    options: dict[str, Any]


def write_document(store: Store, path: str, document: BaseModel) -> None:
    store.write(path, (document.model_dump_json(indent=2) + "\n").encode())


def read_document(store: Store, path: str, kind: type[Document], advice: str) -> Document:
    """A JSON file of a registry. Raises RegistryError with advice on what to do if it cannot be read."""
    try:
        return kind.model_validate_json(store.read(path))
    except FileNotFoundError:
        raise RegistryError(f"{store.place(path)} is missing: {advice}") from None
    except ValidationError as error:
        raise RegistryError(f"{store.place(path)} cannot be read ({error.errors()[0]['msg']}): {advice}") from None
