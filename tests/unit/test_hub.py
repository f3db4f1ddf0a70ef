from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer, ViTConfig, ViTModel

from glyphrun.models import hub
from glyphrun.models.hub import HubError, load_pretrained


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny Vision Transformer on disk."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize("loader", [ViTModel, AutoModel])
def test_a_folder_is_loaded_with_the_weights_that_it_holds(saved, loader):
    model = load_pretrained(loader, str(saved))
    stored = load_file(saved / "model.safetensors")
    assert sum(value.numel() for value in model.state_dict().values()) == sum(map(torch.numel, stored.values()))
    assert torch.equal(model.embeddings.position_embeddings, stored["embeddings.position_embeddings"])


def test_what_has_no_weights_is_loaded_too(saved):
    assert load_pretrained(AutoConfig, str(saved)).hidden_size == 16


def test_a_hub_that_cannot_be_reached_says_how_to_give_a_folder(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for loader in (ViTModel, AutoTokenizer):
        with pytest.raises(HubError, match="hf download nobody/no-model --local-dir DIR.*give DIR as source") as caught:
            load_pretrained(loader, "nobody/no-model")
        assert "\n" not in str(caught.value)


def test_a_hub_whose_name_leads_nowhere_is_not_asked_again_and_again(monkeypatch, caplog):
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")  # a name that by its standard nobody has
    monkeypatch.setattr(hub, "getproxies", dict)
    with pytest.raises(HubError, match="could not be had from the hub .*give DIR as source"):
        load_pretrained(AutoConfig, "nobody/no-model")
    assert "Retry" not in caplog.text


@pytest.mark.parametrize("source", ["/no/such/folder", "./model", "../model", "~/no-such-model", "one/two/three"])
def test_a_folder_that_does_not_exist_is_never_looked_for_on_the_hub(source):
    with pytest.raises(HubError, match=f"there is no folder {re.escape(source)}"):
        load_pretrained(ViTModel, source)


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(HubError, match=f"{re.escape(str(tmp_path))} cannot be loaded as a ViTModel: "):
        load_pretrained(ViTModel, str(tmp_path))


def test_a_damaged_file_is_named(saved):
    (saved / "model.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(HubError, match="cannot be loaded as a ViTModel"):
        load_pretrained(ViTModel, str(saved))


def test_weights_that_are_missing_are_an_error_unless_they_are_optional(saved):
    tensors = load_file(saved / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    save_file(kept, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(HubError, match=r"lacks 2 of the weights of a ViTModel, pooler\.dense\.bias"):
        load_pretrained(ViTModel, str(saved))
    assert load_pretrained(ViTModel, str(saved), optional=("pooler.",)).config.hidden_size == 16


def test_pickles_are_refused_and_the_command_of_the_message_converts_them(saved):
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(tensors, saved / "pytorch_model.bin")
    with pytest.raises(HubError, match="pickles and are not loaded") as caught:
        load_pretrained(ViTModel, str(saved))
    python, *command = shlex.split(str(caught.value).partition("\n")[2])
    assert python == "python"
    subprocess.run([sys.executable, *command], check=True)
    model = load_pretrained(ViTModel, str(saved))
    assert torch.equal(model.embeddings.cls_token, tensors["embeddings.cls_token"])
