"""Prompt, picture and answer as one sequence of token ids, in which a picture's tokens are all there or nothing is.

An image token that truncation takes away leaves features without a place, and the model fails in the middle of a batch
(«Image features and image tokens do not match»). Here nothing is ever cut: what is too long is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
PLACEHOLDER = "<|image_pad|>"
AFTER = ("<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n")  # what asks for the reading stands between the two
IGNORED = -100  # a label that no loss counts

Grid = tuple[int, int]
"""Rows and columns of a picture in image tokens."""


class CollateError(ValueError):
    """A sample or a prompt that no sequence can be made of; the message names it and says what to do."""


@runtime_checkable
class PromptTokens(Protocol):
    """A codec of subwords, which writes prompts as well as answers."""

    def token_ids(self, text: str) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Sequences:
    """A batch of N prompts with their pictures and answers, every part in the same columns of all rows.

    Pictures are padded to the largest and answers to the longest, so padding stands inside a row; it is masked, and the
    positions, which are given, count no padding.
    """

    tokens: Tensor  # (N, L) long
    mask: Tensor  # (N, L) bool, True where a token is
    pictures: Tensor  # (N, L) bool, True where an image feature takes a token's place
    positions: Tensor  # (3, N, L) long, moment, row and column of each token
    labels: Tensor  # (N, L) long, the tokens of the answer and IGNORED elsewhere
    prompt: int  # columns before the answer

    def to(self, device: torch.device) -> Sequences:
        """The same on a device."""
        return Sequences(
            tokens=self.tokens.to(device),
            mask=self.mask.to(device),
            pictures=self.pictures.to(device),
            positions=self.positions.to(device),
            labels=self.labels.to(device),
            prompt=self.prompt,
        )


@dataclass(frozen=True)
class Collator:
    """What surrounds a picture, and how long a sequence may become.

    before and after: token ids around the picture; placeholder: the id of an image token; max_tokens: of prompt, picture
    and answer together.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    placeholder: int
    end: int
    pad: int
    max_tokens: int

    @classmethod
    def for_prompt(cls, prompt: str, codec: PromptTokens, *, end: int, pad: int, max_tokens: int) -> Collator:
        """The published chat format around one picture and a prompt. Raises CollateError if they cannot be told apart."""
        before, after = codec.token_ids(BEFORE), codec.token_ids(f"{AFTER[0]}{prompt}{AFTER[1]}")
        placeholder = codec.token_ids(PLACEHOLDER)
        if len(placeholder) != 1:
            raise CollateError(f"the tokenizer has no token {PLACEHOLDER}: use the one published with the model")
        if placeholder[0] in after:
            raise CollateError(f"the prompt {prompt!r} contains {PLACEHOLDER}, which stands for the picture: remove it")
        return cls(before, after, placeholder[0], end, pad, max_tokens)

    def __call__(
        self, grids: Sequence[Grid], answers: Tensor | None = None, names: Sequence[str] | None = None
    ) -> Sequences:
        """grids: N; answers: (N, A) long, tokens, end, pad; None: prompts alone. Raises CollateError naming a sample."""
        answers = torch.empty(len(grids), 0, dtype=torch.long) if answers is None else answers.cpu()
        answered = (answers == self.end).cumsum(1) - (answers == self.end).long() == 0  # up to the first end
        self.check(grids, answered.sum(1).tolist(), names)
        counts = torch.tensor([rows * columns for rows, columns in grids]).unsqueeze(1)  # (N, 1)
        largest, first = int(counts.max()), len(self.before)
        shown = torch.arange(largest) < counts  # (N, largest)
        picture = torch.where(shown, self.placeholder, self.pad)
        tokens = torch.cat(
            [self._repeated(self.before, len(grids)), picture, self._repeated(self.after, len(grids)), answers], dim=1
        )
        mask, pictures = torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
        mask[:, first : first + largest] = pictures[:, first : first + largest] = shown
        prompt = first + largest + len(self.after)
        mask[:, prompt:] = answered
        labels = torch.full_like(tokens, IGNORED)
        labels[:, prompt:] = answers.masked_fill(~answered, IGNORED)
        positions = self._positions(grids, largest, tokens.shape[1]) * mask
        return Sequences(tokens, mask, pictures, positions, labels, prompt)

    def check(self, grids: Sequence[Grid], answers: Sequence[int], names: Sequence[str] | None = None) -> None:
        """Raises CollateError if a sample is too long; answers: tokens of each answer, its end counted.

        A picture that is only read needs room for at least one token of an answer.
        """
        prompt = len(self.before) + len(self.after)
        for number, ((rows, columns), answer) in enumerate(zip(grids, answers, strict=True)):
            total = prompt + rows * columns + max(answer, 1)
            if total > self.max_tokens:
                name = names[number] if names else f"sample {number} of the batch"
                raise CollateError(
                    f"{name} needs {total} tokens and max_tokens is {self.max_tokens}: the prompt has {prompt}, the "
                    f"picture {rows * columns} ({rows} × {columns}) and the answer {max(answer, 1)}; lower max_pixels or "
                    "raise max_tokens"
                )

    def _repeated(self, ids: tuple[int, ...], rows: int) -> Tensor:
        return torch.tensor(ids, dtype=torch.long).expand(rows, -1)

    def _positions(self, grids: Sequence[Grid], largest: int, length: int) -> Tensor:
        """Text counts on along all three axes, a picture spreads over two of them (arXiv 2409.12191, section 2.1)."""
        first = len(self.before)
        rows, columns = torch.tensor(grids).unsqueeze(-1).unbind(1)  # (N, 1) each
        place = torch.arange(largest)
        row, column = place // columns, place % columns
        spread = torch.stack([torch.zeros_like(row), row, column])  # (3, N, largest)
        follows = torch.maximum(rows, columns) + torch.arange(length - first - largest)
        counted = torch.arange(first).expand(3, len(grids), -1)
        return torch.cat([counted, first + spread, (first + follows).expand(3, -1, -1)], dim=2)
