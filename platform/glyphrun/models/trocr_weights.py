"""Where the modules of a TrOCR come from: published weights, a stored configuration, or sizes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from glyphrun.models.hub import load_pretrained
from glyphrun.models.recognizer import TokenSpace
from glyphrun.models.trocr_settings import TextSizes, TrOCRSettings, VisionSizes
from glyphrun.models.trocr_stem import ConvolutionalStem
from glyphrun.models.waves import place_waves


def build_model(settings: TrOCRSettings, tokens: TokenSpace) -> Any:
    """A VisionEncoderDecoderModel of transformers that writes these tokens.

    Raises ValueError for a source that is no TrOCR, and for tokens, labels or an image size that do not fit it.
    """
    if settings.config is not None:
        model = _from_config(copy.deepcopy(settings.config))
    elif settings.source is not None:
        model = _published(settings, settings.source)
    else:
        model = _from_config(_sizes(settings, tokens))
        _prepare_for_short_training(settings, model.encoder)
    if settings.vocabulary == "charset" and (settings.source or settings.config):
        replace_vocabulary(model.decoder, tokens.num_tokens)
    _check(settings, tokens, model)
    return model


def plain_config(model: Any) -> dict[str, Any]:
    """The configuration of a VisionEncoderDecoderModel as JSON values, without paths and labels of classes."""
    text = model.decoder
    # The weights decide: a checkpoint may hold an output layer that is not the embedding although its configuration says so.
    text.config.tie_word_embeddings = is_tied(text)
    fields: dict[str, Any] = model.config.to_dict()
    for part in (fields, fields["encoder"], fields["decoder"]):
        for key in ("_name_or_path", "transformers_version", "id2label", "label2id"):
            part.pop(key, None)
    return fields


def is_tied(text: Any) -> bool:
    """True if the output layer of a TrOCRForCausalLM is its embedding."""
    return text.output_projection.weight is text.get_input_embeddings().weight


def replace_vocabulary(text: Any, tokens: int) -> None:
    """Give a TrOCRForCausalLM fresh embeddings and a fresh output layer for other tokens, tied if the old ones were."""
    old, tied = text.get_input_embeddings(), is_tied(text)
    # No padding index: the token of that number is another one now.
    embedding = type(old)(tokens, old.embedding_dim, None, embed_scale=old.embed_scale)
    output = nn.Linear(old.embedding_dim, tokens, bias=False)
    nn.init.normal_(embedding.weight, std=text.config.init_std)
    nn.init.normal_(output.weight, std=text.config.init_std)
    if tied:
        output.weight = embedding.weight
    text.set_input_embeddings(embedding)
    text.set_output_embeddings(output)
    text.config.vocab_size = tokens
    if text.config.use_learned_position_embeddings:
        text.config.pad_token_id = None  # waves begin after it, learned positions do without


def _published(settings: TrOCRSettings, source: str) -> Any:
    from transformers import AutoConfig, VisionEncoderDecoderModel  # here: it takes seconds

    config = load_pretrained(AutoConfig, source)
    vit, text = (getattr(getattr(config, part, None), "model_type", None) for part in ("encoder", "decoder"))
    if vit not in ("vit", "deit") or text != "trocr":
        found = config.model_type if vit is None else f"{config.model_type} of {vit} and {text}"
        raise ValueError(f"{source} is a {found}; a TrOCR is a vision-encoder-decoder of vit or deit and trocr")
    model = load_pretrained(
        VisionEncoderDecoderModel, source, optional=("encoder.pooler.",), config=config, dtype=torch.float32
    )
    if settings.vocabulary == "published":
        stated = model.generation_config
        theirs = {"begin": stated.decoder_start_token_id, "end": stated.eos_token_id, "pad": stated.pad_token_id}
        for name, token in theirs.items():
            if token not in (None, getattr(settings, name)):
                raise ValueError(
                    f"{source} uses token {token} as {name}, and {getattr(settings, name)} is set: set {name}: {token}"
                )
    return model


def _from_config(fields: dict[str, Any]) -> Any:
    from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    return VisionEncoderDecoderModel(VisionEncoderDecoderConfig(**fields))


def _sizes(settings: TrOCRSettings, tokens: TokenSpace) -> dict[str, Any]:
    vit, text = settings.encoder or VisionSizes(), settings.decoder or TextSizes()
    return {
        "encoder": {
            "model_type": "vit",
            "hidden_size": vit.width,
            "num_hidden_layers": vit.depth,
            "num_attention_heads": vit.heads,
            "intermediate_size": int(vit.width * vit.mlp_ratio),
            # The published 0.02 suits a width of 1024; at 64 hardly anything of the picture would reach the text.
            "initializer_range": vit.width**-0.5,
            "image_size": list(settings.image),
            "patch_size": list(vit.patch),
        },
        "decoder": {
            "model_type": "trocr",
            "is_decoder": True,
            "add_cross_attention": True,
            "cross_attention_hidden_size": vit.width,
            "d_model": text.width,
            "init_std": text.width**-0.5,
            "decoder_layers": text.depth,
            "decoder_attention_heads": text.heads,
            "decoder_ffn_dim": int(text.width * text.mlp_ratio),
            "dropout": text.dropout,
            "max_position_embeddings": tokens.max_length + 1,
            "vocab_size": tokens.num_tokens,
            "pad_token_id": tokens.pad,
        },
    }


def _prepare_for_short_training(settings: TrOCRSettings, encoder: Any) -> None:
    sizes, embeddings = settings.encoder or VisionSizes(), encoder.embeddings
    if sizes.stem == "convolution":
        embeddings.patch_embeddings.projection = ConvolutionalStem(sizes.patch, sizes.width)
    # Places that look alike at first hold a short training back for hundreds of steps.
    grid = (settings.image[0] // sizes.patch[0], settings.image[1] // sizes.patch[1])
    with torch.no_grad():
        embeddings.position_embeddings[:, 1:].copy_(0.5 * place_waves(grid, sizes.width))


def _check(settings: TrOCRSettings, tokens: TokenSpace, model: Any) -> None:
    origin, text = settings.source or "this TrOCR", model.config.decoder
    if settings.vocabulary == "published":
        ids = (tokens.begin, tokens.end, tokens.pad)
        if tokens.charset or tokens.num_tokens > text.vocab_size or ids != (settings.begin, settings.end, settings.pad):
            raise ValueError(
                f"{origin} writes its own {text.vocab_size} subwords with begin, end and pad {settings.begin}, "
                f"{settings.end} and {settings.pad}; the codec has {tokens.num_tokens} tokens with {ids[0]}, {ids[1]} and "
                f"{ids[2]}: use the source's tokenizer, or set vocabulary: charset"
            )
    if text.use_learned_position_embeddings and tokens.max_length >= text.max_position_embeddings:
        raise ValueError(
            f"{origin} has places for labels of up to {text.max_position_embeddings - 1} tokens, and the longest has "
            f"{tokens.max_length}: split the text into shorter lines"
        )
    patch = tuple(model.encoder.embeddings.patch_embeddings.patch_size)
    if any(side % step for side, step in zip(settings.image, patch, strict=True)):
        raise ValueError(
            f"the image {settings.image[0]} × {settings.image[1]} is no multiple of the patch {patch[0]} × {patch[1]}"
        )
