"""Vision-language models of a few thousand weights, on disk in the format of the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from glyphrun.models.vlm import VLM, VLMSettings
from glyphrun.subwords import SubwordCodec

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def save_tiny(folder: Path, family: str) -> Path:
    """A random model and a tokenizer of bytes; weights are large enough for answers to depend on the picture."""
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLForConditionalGeneration,
    )

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(SPECIAL),
        pad_token=SPECIAL[0],
        eos_token="<|im_end|>",
    )
    fast.save_pretrained(folder)
    ids = dict(zip(SPECIAL, fast.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    model_class = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}[
        family
    ]
    vision = {"depth": 2, "num_heads": 2, "initializer_range": 0.1}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 48, "fullatt_block_indexes": [1]}
    config = model_class.config_class(
        vision_config=vision,
        text_config={
            "vocab_size": 272,  # more than the tokenizer has, as in the published models
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=family == "qwen2_vl",
    )
    torch.manual_seed(7)
    model_class(config).save_pretrained(folder)
    _write_as_published(folder / "config.json")
    return folder


def _write_as_published(config: Path) -> None:
    """The configuration as it lies on the hub, with the language model's keys among the others."""
    fields = json.loads(config.read_text())
    text = fields.pop("text_config")
    rope = text.pop("rope_parameters")
    for key in ("layer_types", "model_type", "dtype"):
        text.pop(key, None)
    scaling = {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    config.write_text(json.dumps(text | scaling | fields))


def tiny_codec(folder: Path, max_length: int = 12) -> SubwordCodec:
    """The codec that a tiny model's settings ask for."""
    subwords = VLMSettings(source=str(folder)).subwords
    return SubwordCodec.from_pretrained(**subwords.model_dump(), max_length=max_length)


def tiny_vlm(folder: Path, **changes: object) -> VLM:
    """The recognizer of a folder, with a short prompt."""
    settings = VLMSettings.model_validate({"source": str(folder), "prompt": "Read.", **changes})
    torch.manual_seed(0)
    return VLM(settings, tiny_codec(folder)).eval()
