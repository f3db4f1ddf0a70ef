"""Vision-language recognizers: Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL (arXiv 2502.13923) asked to read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from glyphrun.inputs import InputSettings
from glyphrun.models.hub import load_pretrained
from glyphrun.models.recognizer import Memory, ModelSettings, Recognizer, SubwordSettings, TokenSpace
from glyphrun.models.vlm_collate import IGNORED, Collator, Grid, PromptTokens, Sequences
from glyphrun.models.vlm_patches import MERGE, STEP, expect_geometry, patchify
from glyphrun.models.vlm_state import VLMState, fork

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Channel statistics of the pictures that the published vision towers were trained on.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class VLMSettings(ModelSettings):
    """A vision-language model that answers a prompt with the text of a picture.

    source: hub name or folder of weights and tokenizer. config: the configuration in transformers' form; with it a model
    is built without weights. A picture has min_pixels to max_pixels after resizing, an image token for every 28 × 28 of
    them. max_tokens: the longest prompt, picture and answer together.
    """

    kind: Literal["vlm"] = "vlm"
    source: str
    config: dict[str, Any] | None = None
    prompt: str = "Read the text in the picture. Answer with the text alone."
    min_pixels: int = Field(4 * STEP**2, ge=1)
    max_pixels: int = Field(512 * STEP**2, multiple_of=STEP**2, ge=STEP**2)
    max_tokens: int = Field(1024, ge=1)

    @model_validator(mode="after")
    def _has_a_budget(self) -> VLMSettings:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        return self

    @property
    def input(self) -> InputSettings:
        """Pictures near their own size within the pixel budget, which alone decides how many image tokens they have."""
        squares = self.max_pixels // STEP**2
        rows = next(rows for rows in range(isqrt(squares), 0, -1) if squares % rows == 0)
        return InputSettings(
            height=rows * STEP,
            width=squares // rows * STEP,
            resize="budget",
            multiple=STEP,
            min_pixels=self.min_pixels,
            mean=MEAN,
            std=STD,
        )

    @property
    def subwords(self) -> SubwordSettings:
        """The model's own tokenizer. An answer begins after the prompt, not after a token of its own."""
        return SubwordSettings(source=self.source, begin="<|im_start|>", end="<|im_end|>", pad="<|endoftext|>")


@dataclass(frozen=True)
class PictureMemory(Memory):
    """Image tokens (N, S, D) of N frames, and how each frame's tokens lie in rows and columns."""

    grids: tuple[Grid, ...]


class VLM(Recognizer):
    """A frame and a prompt in, subwords out. ``settings`` carries the configuration of the model that was loaded."""

    reads_frames_together = False
    settings: VLMSettings

    def __init__(self, settings: VLMSettings, tokens: TokenSpace) -> None:
        super().__init__()
        if not isinstance(tokens, PromptTokens):
            raise ValueError(
                f"{settings.source} reads and writes its own subwords, and this codec has the charset {tokens.charset!r}: "
                "make the codec from the settings' subwords"
            )
        model = _model(settings)
        expect_geometry(settings.source, model.config.vision_config)
        self.settings = settings.model_copy(update={"config": _portable(model.config)})
        self.end, self.max_length = tokens.end, tokens.max_length
        self.collate = Collator.for_prompt(
            settings.prompt, tokens, end=tokens.end, pad=tokens.pad, max_tokens=settings.max_tokens
        )
        self.begin = self.collate.after[-1]
        if self.collate.placeholder != model.config.image_token_id or tokens.num_tokens > model.lm_head.out_features:
            raise ValueError(f"{settings.source}: the codec's tokens are not the model's; use the tokenizer beside it")
        self.visual = model.model.visual
        self.language_model = model.model.language_model
        # Tied weights have one name here, because a safetensors file holds a tensor once.
        self.lm_head = None if model.config.tie_word_embeddings else model.lm_head

    def encode(self, frames: Tensor, frame_mask: Tensor, sizes: Tensor | None = None) -> PictureMemory:
        """frames: (B, T, 3, H, W) normalised float; frame_mask: (B, T) bool; sizes: (B, T, 2) long, multiples of 28."""
        pictures = list(frames[frame_mask])
        if sizes is not None:
            extents = sizes[frame_mask].tolist()
            pictures = [picture[:, :height, :width] for picture, (height, width) in zip(pictures, extents, strict=True)]
        patches, patch_grids = patchify(pictures)
        features = self.visual(patches, grid_thw=patch_grids).pooler_output  # (tokens of all frames, D)
        grids = tuple((rows // MERGE, columns // MERGE) for _, rows, columns in patch_grids.tolist())
        counts = [rows * columns for rows, columns in grids]
        tokens = pad_sequence(features.split(counts), batch_first=True)  # (N, S, D)
        shown = torch.arange(tokens.shape[1]) < torch.tensor(counts).unsqueeze(1)
        mask = None if len(set(counts)) == 1 else shown.to(tokens.device)
        alone = torch.ones(len(tokens), 1, dtype=torch.bool, device=tokens.device)
        return PictureMemory(tokens, mask, tokens, alone, grids)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The blocks that see, the layer that turns patches into image tokens, and the language model."""
        decoder = ("language_model",) if self.lm_head is None else ("language_model", "lm_head")
        return {"vision": ("visual.patch_embed", "visual.blocks"), "projector": ("visual.merger",), "decoder": decoder}

    def check(self, sizes: Sequence[tuple[int, int]], answers: Sequence[int], names: Sequence[str]) -> None:
        """Raises CollateError naming the first sample that is too long to learn from.

        sizes: height and width of the resized pictures; answers: how many tokens each text has, end included.
        """
        self.collate.check([(height // STEP, width // STEP) for height, width in sizes], answers, names)

    def loss(self, memory: Memory, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood a token of the answer and its end; targets: (N, L) long, begin … end, pad."""
        sequences = self._sequences(memory, targets[:, 1:])
        hidden = self.language_model(
            inputs_embeds=self._embedded(sequences, memory),
            attention_mask=sequences.mask,
            position_ids=sequences.positions,
            use_cache=False,
        ).last_hidden_state
        labels = sequences.labels[:, sequences.prompt :]
        counted = labels != IGNORED
        # Only answers go through the head: a vocabulary of 150,000 over whole pictures would fill the memory.
        logits = self._logits(hidden[:, sequences.prompt - 1 : -1][counted])
        return F.cross_entropy(logits.float(), labels[counted])

    def start(self, memory: Memory, width: int) -> VLMState:
        """Everything of the prompt but its last token, which is ``begin``, is read here and once per item."""
        from transformers import DynamicCache

        sequences = self._sequences(memory, None)
        cache = DynamicCache()
        self.language_model(
            inputs_embeds=self._embedded(sequences, memory)[:, :-1],
            attention_mask=sequences.mask[:, :-1],
            position_ids=sequences.positions[..., :-1],
            past_key_values=cache,
            use_cache=True,
        )
        if width > 1:
            cache.batch_repeat_interleave(width)
        mask = sequences.mask[:, :-1].repeat_interleave(width, dim=0)
        return VLMState(cache, mask, sequences.positions[0, :, -1].repeat_interleave(width), width)

    def step(self, state: VLMState, tokens: Tensor) -> tuple[Tensor, VLMState]:
        """tokens: (B·width,) long → log-probabilities (B·width, V) and the next state."""
        cache = fork(state.cache)
        mask = torch.cat([state.mask, state.mask.new_ones(len(tokens), 1)], dim=1)
        hidden = self.language_model(
            inputs_embeds=self.language_model.embed_tokens(tokens.unsqueeze(1)),
            attention_mask=mask,
            position_ids=state.positions.view(1, -1, 1).expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        log_probs = self._logits(hidden[:, -1]).float().log_softmax(-1)
        return log_probs, VLMState(cache, mask, state.positions + 1, state.width)

    def _sequences(self, memory: Memory, answers: Tensor | None) -> Sequences:
        assert isinstance(memory, PictureMemory)
        return self.collate(memory.grids, answers).to(memory.tokens.device)

    def _embedded(self, sequences: Sequences, memory: Memory) -> Tensor:
        """Token embeddings with the features of the pictures in their places: (N, L, D)."""
        embedded = self.language_model.embed_tokens(sequences.tokens)
        features = memory.tokens.flatten(0, 1) if memory.mask is None else memory.tokens[memory.mask]
        return embedded.masked_scatter(sequences.pictures.unsqueeze(-1), features.to(embedded.dtype))

    def _logits(self, hidden: Tensor) -> Tensor:
        if self.lm_head is None:
            return F.linear(hidden, self.language_model.embed_tokens.weight)
        return self.lm_head(hidden)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VLM:
        """Move or cast everything, but keep the angles of rotary embeddings in float32: half a digit turns far tokens."""
        exact = {name: buffer for name, buffer in self.named_buffers() if buffer.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if name in exact and buffer.dtype != torch.float32:
                owner, _, attribute = name.rpartition(".")
                setattr(self.get_submodule(owner), attribute, exact[name].to(buffer.device))
        return self


def _model(settings: VLMSettings) -> PreTrainedModel:
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

    families: dict[str, Any] = {
        "qwen2_vl": Qwen2VLForConditionalGeneration,
        "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    }
    if settings.config is not None:
        kind = str(settings.config.get("model_type"))
    else:
        kind = load_pretrained(AutoConfig, settings.source).model_type
    if kind not in families:
        raise ValueError(f"{settings.source} is a {kind}; vision-language recognizers are {' and '.join(families)}")
    family = families[kind]
    if settings.config is not None:
        return family(family.config_class.from_dict(settings.config))
    return load_pretrained(family, settings.source, dtype=torch.float32)


def _portable(config: PretrainedConfig) -> dict[str, Any]:
    """Every value, so that other defaults of a later release change nothing, but not where it was read from."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    fields.pop("_name_or_path", None)
    return fields
