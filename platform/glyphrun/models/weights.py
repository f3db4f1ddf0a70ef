"""Weights by published name, url or path, as tensors by plain names; what is downloaded is checked before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import string
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from glyphrun.models.torch_files import Shell, WeightsError, other_content, read_torch_file

PUBLISHED_CHARSET = string.digits + string.ascii_letters + string.punctuation
_RELEASE = "https://github.com/baudm/parseq/releases/download/v1.0.0/"
_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
_CHUNK = 1 << 20

Progress = Callable[[int, int | None], None]
"""Called during a download with the bytes so far and the bytes in all, if the server says."""


@dataclass(frozen=True)
class Origin:
    """What weights were trained for; None where nothing says. image: height and width in pixels."""

    charset: str | None = None
    image: tuple[int, int] | None = None


PUBLISHED: dict[str, tuple[str, Origin]] = {
    "parseq-tiny": (f"{_RELEASE}parseq_tiny-e7a21b54.pt", Origin(PUBLISHED_CHARSET, (32, 128))),
    "parseq-small": (f"{_RELEASE}parseq-bb5792a6.pt", Origin(PUBLISHED_CHARSET, (32, 128))),
    "parseq-small-patch16-224": (
        f"{_RELEASE}parseq_small_patch16_224-fcf06f5a.pt",
        Origin(PUBLISHED_CHARSET, (224, 224)),
    ),
}


def load_weights(source: str, cache: Path | None = None, progress: Progress | None = None) -> dict[str, Tensor]:
    """The tensors of a published name, an http, https or file url, a weights file, or a bundle's folder.

    A url carries the start of its file's sha256, as in ``…/name-e7a21b54.pt`` or ``…/name.pt#sha256=e7a21b54…``. Files
    are kept in cache: $GLYPHRUN_CACHE or ~/.cache/glyphrun if it is None. The prefixes ``model.``, ``module.`` and
    ``_orig_mod.`` are taken off the names. Raises WeightsError.
    """
    if source in PUBLISHED:
        return load_weights(PUBLISHED[source][0], cache, progress)
    path = _cached(source, cache, progress) if "://" in source else _local(source)
    if path.suffix == ".safetensors":
        return by_plain_name(_read_safetensors(path), path)
    return by_plain_name(_state_dict(read_torch_file(path), path), path)


def weights_origin(source: str) -> Origin:
    """What is known of a source's charset and image size: all of a published name or a bundle, nothing of other files."""
    if source in PUBLISHED:
        return PUBLISHED[source][1]
    path = Path(source).expanduser()
    manifest = (path.parent if path.name == "weights.safetensors" else path) / "manifest.json"
    if not manifest.is_file():
        return Origin()
    try:
        fields = json.loads(manifest.read_text(encoding="utf-8"))
        encoder = fields["recognizer"].get("encoder")
        image = encoder.get("image") if isinstance(encoder, dict) else None
        return Origin(fields["codec"].get("charset") or None, (image[0], image[1]) if image else None)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise WeightsError(f"{manifest} is no bundle's manifest ({error!r}): copy the bundle again") from None


def plain_name(name: str) -> str:
    """A tensor's name without what wrappers put before it: Lightning, DataParallel and torch.compile, nested or not."""
    name = name.replace("_orig_mod.", "")
    while name.startswith(("model.", "module.")):
        name = name.partition(".")[2]
    return name


def by_plain_name(tensors: dict[str, Tensor], path: Path | None = None) -> dict[str, Tensor]:
    """The same tensors under their plain names. Raises WeightsError if two of them would get the same."""
    named: dict[str, str] = {}
    for name in tensors:
        if (other := named.setdefault(plain_name(name), name)) != name:
            raise WeightsError(
                f"{path or 'the weights'} holds both {other} and {name}: keep one of the two models in it"
            )
    return {plain: tensors[name] for plain, name in named.items()}


def expect_source(source: str) -> None:
    """Refuse, before anything is fetched, what can be no weights. Raises WeightsError naming the near names."""
    if "://" in source:
        _checked_address(source)
    elif source not in PUBLISHED:
        _local(source)


def _local(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        path /= "weights.safetensors"
        if not path.is_file():
            raise WeightsError(f"{path.parent} holds no weights.safetensors: give a bundle's folder or a weights file")
        _check_sums(path)
    elif not path.is_file():
        if path.suffix in _SUFFIXES or path.name != source:
            raise WeightsError(f"there is no file {source}: give the path of a weights file, a url or a published name")
        near = get_close_matches(source, PUBLISHED, n=3, cutoff=0.4) or sorted(PUBLISHED)
        raise WeightsError(f"no published weights are called {source!r}: did you mean {' or '.join(near)}?")
    if path.suffix not in _SUFFIXES:
        raise WeightsError(f"{path} is no weights file by its name: give one that ends in {', '.join(_SUFFIXES)}")
    return path


def _check_sums(path: Path) -> None:
    """Hold a bundle's weights against its SHA256SUMS; a training checkpoint's folder has none."""
    sums = path.with_name("SHA256SUMS")
    if sums.is_file() and f"{_sha256(path)}  {path.name}" not in sums.read_text(encoding="utf-8").splitlines():
        raise WeightsError(f"{path} was changed: its sha256 is not the one in {sums.name}; copy the bundle again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            found = other_content(file.read(512))
        raise WeightsError(f"{path} {found or f'is cut off or damaged ({error}): copy or download it again'}") from None


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The named tensors of a file: its own, or those of the state_dict or model in it."""
    for _ in range(4):  # a trainer's file may hold a model's file; deeper nesting is none of them
        if not isinstance(loaded, dict):
            break
        inside = next((loaded[key] for key in ("state_dict", "model") if isinstance(loaded.get(key), dict)), None)
        if inside is None:
            break
        loaded = inside
    tensors: dict[str, Tensor] = {}
    for name, value in loaded.items() if isinstance(loaded, dict) else ():
        if isinstance(value, Shell) and value.made_by.startswith("torch."):
            raise WeightsError(
                f"{path} holds {name} as {value.made_by}, not as a plain tensor: save it dequantized, dense"
            )
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value
    if tensors:
        return tensors
    kind = f"a pickled {loaded.made_by}" if isinstance(loaded, Shell) else f"a {type(loaded).__name__} without tensors"
    raise WeightsError(f"{path} holds {kind}: save the model's state_dict, torch.save(model.state_dict(), path)")


def _cached(url: str, cache: Path | None, progress: Progress | None) -> Path:
    """Where a url's file lies after it was fetched and checked."""
    address, name, digest = _checked_address(url)
    folder = cache or Path(os.environ.get("GLYPHRUN_CACHE") or "~/.cache/glyphrun").expanduser()
    path = folder / name
    if path.is_file() and _sha256(path).startswith(digest):
        return path
    part = path.with_name(f".{name}.{uuid.uuid4().hex}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for chunk in _fetch(address, progress):
                file.write(chunk)
        found = _sha256(part)
        if not found.startswith(digest):
            raise WeightsError(
                f"{address} gave a file whose sha256 begins with {found[: len(digest)]}, not {digest}: "
                f"it is another file or was changed on the way; it was not kept"
            )
        os.replace(part, path)
    except OSError as error:
        raise WeightsError(
            f"{folder} cannot be written ({error.strerror}): set GLYPHRUN_CACHE to another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return path


def _checked_address(url: str) -> tuple[str, str, str]:
    """The address, the file's name in the cache, and how its sha256 begins."""
    address, fragment = urllib.parse.urldefrag(url)
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https", "file"):
        raise WeightsError(f"{url} is not read: copy the file and give its path, or give an http, https or file url")
    name = Path(urllib.parse.unquote(parts.path)).name
    stem, suffix = Path(name).stem, Path(name).suffix
    if suffix not in _SUFFIXES:
        raise WeightsError(f"{url} names no weights file: give one that ends in {', '.join(_SUFFIXES)}")
    if stated := re.fullmatch(r"sha256=([0-9a-fA-F]{8,64})", fragment):
        digest = stated[1].lower()
        return address, f"{stem}-{digest}{suffix}", digest
    if not fragment and (ending := re.search(r"-([0-9a-f]{8,64})$", stem)):
        return address, name, ending[1]
    raise WeightsError(
        f"{url} does not say what its file's sha256 is, so a changed file would go unseen: "
        f"give {address}#sha256= and at least its first 8 digits"
    )


def _fetch(address: str, progress: Progress | None) -> Iterator[bytes]:
    host = urllib.parse.urlsplit(address).hostname
    elsewhere = "download it where you can and give the file's path instead"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, headers={"User-Agent": "glyphrun"}), timeout=30
        ) as body:
            total = int(body.headers["Content-Length"]) if body.headers["Content-Length"] else None
            done = 0
            while chunk := body.read(_CHUNK):
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
                yield chunk
    except urllib.error.HTTPError as error:
        raise WeightsError(
            f"{address} answered {error.code} {error.reason}: check the address, or {elsewhere}"
        ) from None
    except urllib.error.URLError as error:
        what = f"{host} cannot be reached" if host else "there is no such file"
        raise WeightsError(f"{address}: {what} ({error.reason}); {elsewhere}") from None
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{address}: the connection broke off ({error!r}); try again, or {elsewhere}") from None
    if total is not None and done < total:
        raise WeightsError(f"{address} broke off after {done} of {total} bytes: try again, or {elsewhere}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
