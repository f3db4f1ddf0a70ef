"""A data set without labels that grows while others write to it, and whose oldest samples go when it is full."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from glyphrun.data.sample import (
    CARD_FILE,
    DatasetCard,
    DatasetError,
    Sample,
    Shard,
    read_card,
    row_sample,
    samples_table,
    write_card,
)

UNLABELLED = "unlabelled"
# Says that a folder is of this kind, so that no other data set is ever cut short; and is what writers lock.
MARK = ".rolling"
# Old samples go a shard at a time, so a full data set is never emptier than by such a part.
SHARDS = 8


class RollingDataset:
    """At most so many samples and bytes of shards: whole shards of the oldest go first.

    Several processes may add to one folder. A shard is written aside and renamed, then the card, and only then do files go
    that it no longer lists; what a killed process left is removed by the next one. A reader that holds an older card may find
    a shard gone and reads the new card.
    """

    def __init__(self, folder: str | os.PathLike[str], new: DatasetCard, *, most_items: int, most_bytes: int) -> None:
        """new: what the card says of a folder in which nothing is yet."""
        self.folder = Path(folder)
        self._new = new
        self._most_items, self._most_bytes = most_items, most_bytes
        self._shard_items = max(1, most_items // SHARDS)
        self._shard_bytes = max(1, most_bytes // SHARDS)
        self._ids: dict[str, frozenset[str]] = {}  # by shard, whose content is in its name

    def add(self, samples: Iterable[Sample]) -> int:
        """How many were added: not those that are there, nor those of more bytes than a shard may have.

        Raises DatasetError if the folder holds something else or is damaged, OSError if it cannot be written.
        """
        with _alone(self.folder):
            card = read_card(self.folder) if (self.folder / CARD_FILE).exists() else self._new
            shards = list(card.shards)
            self._ids = {shard.file: self._ids.get(shard.file) or self._read_ids(shard) for shard in shards}
            known = frozenset[str]().union(*self._ids.values())
            fresh = {
                sample.sample_id: sample
                for sample in samples
                if sample.sample_id not in known and _size(sample) <= self._shard_bytes
            }
            if fresh:
                begun: list[Sample] = []
                if shards and not self._is_full(shards[-1]):
                    begun = self._read(shards.pop())
                shards += [self._write(part) for part in self._parts([*begun, *fresh.values()])]
                shards = self._newest(shards)
                counts = {UNLABELLED: sum(shard.rows for shard in shards)}
                write_card(self.folder, card.model_copy(update={"counts": counts, "shards": tuple(shards)}))
            self._remove_unlisted(shards)
        return len(fresh)

    def _read_ids(self, shard: Shard) -> frozenset[str]:
        return frozenset(self._table(shard, ["sample_id"])["sample_id"].to_pylist())

    def _read(self, shard: Shard) -> list[Sample]:
        return [row_sample(row) for row in self._table(shard).to_pylist()]

    def _table(self, shard: Shard, columns: list[str] | None = None) -> pa.Table:
        path = self.folder / shard.file
        try:
            return pq.read_table(path, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{path} cannot be read: {error}. Run `glyphrun data check {self.folder}`.") from error

    def _is_full(self, shard: Shard) -> bool:
        return shard.rows >= self._shard_items or (self.folder / shard.file).stat().st_size >= self._shard_bytes

    def _parts(self, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
        part: list[Sample] = []
        for sample in samples:
            if part and (len(part) >= self._shard_items or sum(map(_size, part)) + _size(sample) > self._shard_bytes):
                yield part
                part = []
            part.append(sample)
        yield part

    def _write(self, samples: Sequence[Sample]) -> Shard:
        aside = self.folder / f".part.{os.getpid()}.partial"
        # The frames are compressed images already.
        pq.write_table(samples_table(samples), aside, compression="none")
        with open(aside, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(file=f"part-{sha256[:20]}.parquet", rows=len(samples), sha256=sha256)
        os.replace(aside, self.folder / shard.file)
        return shard

    def _newest(self, shards: Sequence[Shard]) -> list[Shard]:
        kept: list[Shard] = []
        items = size = 0
        for shard in reversed(shards):
            items += shard.rows
            size += (self.folder / shard.file).stat().st_size
            if kept and (items > self._most_items or size > self._most_bytes):
                break
            kept.append(shard)
        return kept[::-1]

    def _remove_unlisted(self, shards: Sequence[Shard]) -> None:
        listed = {shard.file for shard in shards}
        for path in [*self.folder.glob("part-*.parquet"), *self.folder.glob(".part.*.partial")]:
            if path.name not in listed:
                path.unlink(missing_ok=True)


def claim_folder(folder: str | os.PathLike[str]) -> None:
    """Make the folder of a rolling data set if there is none. Raises DatasetError if it holds something else."""
    with _alone(Path(folder)):
        pass


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"{folder} is a file; name a folder for the samples.")
    # In this order: another server's mark comes before anything else that it writes.
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise DatasetError(f"{folder} holds something other than samples kept by a server; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / MARK, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _size(sample: Sample) -> int:
    return sum(map(len, sample.frames))
