"""Published models by hub name or folder: weights as safetensors alone, and failures that say what to do."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from safetensors import SafetensorError
from torch import nn

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_CONVERT = """python -c 'import torch, safetensors.torch, pathlib
files = sorted(pathlib.Path("{folder}").glob("*.bin"))
weights = {{k: v.clone() for f in files for k, v in torch.load(f, map_location="cpu", weights_only=True).items()}}
safetensors.torch.save_file(weights, "{folder}/model.safetensors", {{"format": "pt"}})'"""


class HubError(ValueError):
    """A published model cannot be loaded; the message names the source and what to do."""


def load_pretrained(loader: Any, source: str, *, optional: tuple[str, ...] = (), **options: Any) -> Any:
    """What ``loader.from_pretrained`` makes of a hub name or a folder; loader: a class of transformers.

    Weights are read from safetensors and never from pickle, and all of them must be there but those whose names begin
    with one of ``optional``. Raises HubError.
    """
    folder = Path(source).expanduser()
    local = folder.is_dir()
    if not local and not HUB_NAME.fullmatch(source):
        raise HubError(f"there is no folder {source}: give one that exists, or a hub name such as owner/model")
    with_weights = _loads_weights(loader)
    if with_weights:
        if local:
            _refuse_pickles(folder)
        # With «main» in its place, transformers asks a public service to convert a repository that has pickles alone.
        options = {"use_safetensors": True, "output_loading_info": True, "revision": None, **options}
    if not local and not _hub_has_an_address():
        options["local_files_only"] = (
            True  # what was fetched before is loaded, and nothing waits for five attempts a file
        )
    try:
        loaded = loader.from_pretrained(str(folder) if local else source, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise HubError(_explained(error, loader, source, local)) from error
    if not with_weights:
        return loaded
    model, report = loaded
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(optional))
    if missing:
        raise HubError(
            f"{source} lacks {len(missing)} of the weights of a {type(model).__name__}, {missing[0]} for one: "
            f"it is incomplete or another kind of model"
        )
    return model


def _loads_weights(loader: Any) -> bool:
    """True of model classes, and of the automatic ones, which alone can also build from a configuration."""
    return hasattr(loader, "from_config") or (isinstance(loader, type) and issubclass(loader, nn.Module))


def _hub_has_an_address() -> bool:
    """False where the name of the hub leads nowhere; behind a proxy nobody but the proxy knows."""
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    if getproxies() or host is None:
        return True
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise HubError(
            f"{folder} has its weights in .bin files alone, which are pickles and are not loaded. "
            f"Convert them once, then try again:\n{_CONVERT.format(folder=folder)}"
        )


def _explained(error: Exception, loader: Any, source: str, local: bool) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    if local:
        return f"{source} cannot be loaded as a {loader.__name__}: {said}"
    download = f"`hf download {source} --local-dir DIR`"
    if "safetensors" in said:
        return (
            f"{source} has no weights as safetensors on the hub, and pickles are not loaded: fetch them with {download} "
            f"and give DIR as source, which then says how to convert them"
        )
    return (
        f"{source} is no folder here and could not be had from the hub ({said}): run {download} "
        f"where there is a connection, then give DIR as source (`source: DIR` in an experiment, --source on the command line)"
    )
