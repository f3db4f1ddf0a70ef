"""TrOCR (Li et al., AAAI 2023, arXiv 2109.10282): a Vision Transformer and a text decoder that attends to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glyphrun.models.multiscale import DepthFusion, depths
from glyphrun.models.recognizer import Memory, Recognizer, TokenSpace
from glyphrun.models.trocr_decoder import TextDecoder, TextState
from glyphrun.models.trocr_encoder import hidden_states
from glyphrun.models.trocr_settings import TrOCRSettings
from glyphrun.models.trocr_weights import build_model, plain_config


class TrOCR(Recognizer):
    """Every frame alone → tokens, one after another.

    With its published vocabulary any token may follow, as in transformers' ``generate``; with a new one neither begin
    nor pad is ever predicted.
    """

    settings: TrOCRSettings
    reads_frames_together = False

    def __init__(self, settings: TrOCRSettings, tokens: TokenSpace) -> None:
        super().__init__()
        published = settings.vocabulary == "published"
        model = build_model(settings, tokens)
        vit = model.encoder
        stored = settings.source or settings.config
        self.settings = settings.model_copy(update={"config": plain_config(model)}) if stored else settings
        self.begin, self.end, self.pad, self.max_length = tokens.begin, tokens.end, tokens.pad, tokens.max_length
        self.blocks = depths(vit.config.num_hidden_layers, settings.scales)
        vit.pooler = None  # nothing reads it
        self.encoder = vit
        self.fusion = DepthFusion(vit.config.hidden_size, settings.scales)
        self.projector = getattr(model, "enc_to_dec_proj", None) or nn.Identity()
        self.decoder = TextDecoder(model.decoder, tokens.max_length + 1, pad_has_no_place=published)
        never = [] if published else sorted({tokens.begin, tokens.pad} - {tokens.end})
        self.register_buffer("never", torch.tensor(never, dtype=torch.long), persistent=False)
        if settings.train == "decoder":
            self.encoder.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> TrOCR:
        """A frozen encoder stays as it reads."""
        super().train(mode)
        if self.settings.train == "decoder":
            self.encoder.eval()
        # The fused kernel's backward pass is the slow part of training on a CPU, and only there.
        unfused = self.encoder.training and self.encoder.device.type == "cpu"
        self.encoder.set_attn_implementation("eager" if unfused else "sdpa")
        return self

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Names of the modules that see, fuse and read."""
        return {"vision": ("encoder",), "projector": ("fusion", "projector"), "decoder": ("decoder",)}

    def encode(self, frames: Tensor, frame_mask: Tensor, sizes: Tensor | None = None) -> Memory:
        """frames: (B, T, 3, H, W) normalised float; frame_mask: (B, T) bool; sizes: (B, T, 2) long, for keep-aspect."""
        pictures = None if sizes is None or self.settings.resize == "squeeze" else sizes[frame_mask]
        features, mask = hidden_states(self.encoder, frames[frame_mask], pictures, self.blocks)
        tokens = self.projector(self.fusion(features))  # (N, S, D)
        return Memory(tokens, mask, tokens, frame_mask.new_ones(len(tokens), 1))

    def loss(self, memory: Memory, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood a token; targets: (B, L) long, begin … end, pad."""
        context, expected = targets[:, :-1], targets[:, 1:]
        length, device = context.shape[1], targets.device
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        seen = self.decoder.memory_keys_values(memory.tokens)
        logits, _ = self.decoder(
            context, torch.arange(length, device=device), [], causal, seen, _over_heads(memory.mask)
        )
        return F.cross_entropy(self._allowed(logits).flatten(0, 1), expected.flatten(), ignore_index=self.pad)

    def start(self, memory: Memory, width: int) -> TextState:
        """width: beams kept per item."""
        lineage = torch.ones(len(memory.tokens), width, 0, dtype=torch.bool, device=memory.tokens.device)
        return TextState(
            self.decoder.memory_keys_values(memory.tokens), _over_heads(memory.mask), [], lineage, position=0
        )

    def step(self, state: TextState, tokens: Tensor) -> tuple[Tensor, TextState]:
        """tokens: (B·width,) long → log-probabilities (B·width, V)."""
        items, width, _ = state.lineage.shape
        itself = torch.eye(width, dtype=torch.bool, device=tokens.device).expand(items, -1, -1)
        lineage = torch.cat([state.lineage, itself], dim=2)
        position = torch.full((1,), state.position, device=tokens.device)
        mask = lineage.unsqueeze(1) if width > 1 else None  # (B, 1, width, P·width)
        logits, content = self.decoder(
            tokens.view(items, width), position, state.content, mask, state.memory, state.memory_mask
        )
        after = TextState(state.memory, state.memory_mask, content, lineage, state.position + 1)
        return self._allowed(logits).flatten(0, 1).log_softmax(-1), after

    def _allowed(self, logits: Tensor) -> Tensor:
        return logits.float().index_fill(-1, self.get_buffer("never"), float("-inf"))


def _over_heads(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, None, None, :]  # (B, S) → (B, 1, 1, S)
