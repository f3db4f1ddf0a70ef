"""Whole texts weighed by a causal language model of transformers; it is too slow a judge for every step of a beam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from glyphrun.language.lm import LanguageModelError
from glyphrun.models.hub import load_pretrained
from glyphrun.text import normalise

TOKENS_AT_ONCE = 4096  # bounds the memory of the logits: 32,000 subwords of a float32 each are half a gigabyte


class CausalLM:
    """A model and its tokenizer. A text is its tokens between the tokenizer's begin and its end.

    Where there is no begin the end stands for it, as in models that were trained on texts one after the other.
    """

    def __init__(self, model: Any, tokenizer: Any, *, device: torch.device | None = None) -> None:
        """Raises LanguageModelError for a tokenizer that has no end."""
        if tokenizer.eos_token_id is None:
            raise LanguageModelError(f"{tokenizer.name_or_path}: the tokenizer has no end token to score a text with")
        self.device = device or torch.device("cpu")
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.end = int(tokenizer.eos_token_id)
        self.begin = self.end if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
        self.longest = int(getattr(model.config, "max_position_embeddings", None) or 2048)

    @classmethod
    def load(cls, source: str, *, device: torch.device | None = None) -> CausalLM:
        """A folder or a hub name, weights as safetensors. Raises HubError or LanguageModelError."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = load_pretrained(AutoModelForCausalLM, source, dtype=torch.float32)
        return cls(model, load_pretrained(AutoTokenizer, source), device=device)

    @torch.inference_mode()
    def log_probs(self, texts: Sequence[str]) -> list[float]:
        """Natural log-probability of each text and its end; of a text longer than the model's, of as much as fits."""
        sequences = [self._tokens(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda number: len(sequences[number]))
        found = [0.0] * len(texts)
        while order:
            # The longest first: a batch that fits then stays one that fits.
            size = max(TOKENS_AT_ONCE // len(sequences[order[-1]]), 1)
            batch, order = order[-size:], order[:-size]
            for number, log_prob in zip(batch, self._scores([sequences[row] for row in batch]), strict=True):
                found[number] = log_prob
        return found

    def _tokens(self, text: str) -> list[int]:
        whole = normalise(text).encode("utf-8", "replace").decode("utf-8")  # no half of a surrogate pair
        tokens = list(self.tokenizer.encode(whole, add_special_tokens=False))
        return [self.begin, *tokens, self.end][: self.longest]

    def _scores(self, sequences: Sequence[list[int]]) -> list[float]:
        tokens = pad_sequence([torch.tensor(tokens) for tokens in sequences], batch_first=True).to(
            self.device
        )  # (B, L)
        lengths = torch.tensor([len(tokens) for tokens in sequences], device=self.device)
        mask = torch.arange(tokens.shape[1], device=self.device) < lengths.unsqueeze(1)
        logits = self.model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")  # (B, L - 1)
        return (-(losses * mask[:, 1:]).sum(1)).tolist()
