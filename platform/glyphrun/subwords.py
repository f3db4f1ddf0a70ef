"""Texts as the subwords of a published tokenizer, for recognizers that were trained on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glyphrun.text import TextError, normalise

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class SubwordCodec:
    """A tokenizer, as the JSON of the ``tokenizers`` library, with the ids that begin, end and pad a text.

    max_length counts tokens. Normalised text in, normalised text out; whatever spaces a tokenizer adds are taken off.
    """

    tokenizer_json: str
    begin: int
    end: int
    pad: int
    max_length: int

    charset = ""  # any text can be written in subwords

    @classmethod
    def from_pretrained(
        cls, source: str, *, begin: int | str, end: int | str, pad: int | str, max_length: int
    ) -> SubwordCodec:
        """The tokenizer of a hub name or a folder; tokens are given as ids or by name.

        Raises TextError for a token that the tokenizer lacks.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here: it takes seconds

        from glyphrun.models.hub import load_pretrained

        loaded = load_pretrained(AutoTokenizer, source)
        if not isinstance(loaded, PreTrainedTokenizerFast):
            raise TextError(f"{source} has no fast tokenizer (tokenizer.json); save one with transformers first.")
        ids = []
        for token in (begin, end, pad):
            found = token if isinstance(token, int) else loaded.backend_tokenizer.token_to_id(token)
            if found is None or not 0 <= found < len(loaded):
                raise TextError(f"The tokenizer of {source} has no token {token!r}.")
            ids.append(found)
        return cls(loaded.backend_tokenizer.to_str(), ids[0], ids[1], ids[2], max_length)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer  # here, so that nothing else needs it

        tokenizer = Tokenizer.from_str(self.tokenizer_json)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @property
    def num_tokens(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def token_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a text in which special tokens stand by name, such as a prompt; nothing is added to it."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, text: str) -> list[int]:
        """Ids of the normalised text without begin and end. Raises TextError for more than max_length of them."""
        ids = self._tokenizer.encode(normalise(text), add_special_tokens=False).ids
        if len(ids) > self.max_length:
            raise TextError(f"{text!r} has {len(ids)} tokens; the limit is {self.max_length}.")
        return list(ids)

    def encode_batch(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids (B, longest + 2), int64: begin, the subwords, end, then padding."""
        import torch

        encoded = [self.encode(text) for text in texts]
        longest = max((len(ids) for ids in encoded), default=0)
        tokens = torch.full((len(encoded), longest + 2), self.pad, dtype=torch.long)
        for row, ids in zip(tokens, encoded, strict=True):
            row[: len(ids) + 2] = torch.tensor([self.begin, *ids, self.end])
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first end, without special tokens."""
        return normalise(str(self._tokenizer.decode(self._until_end(ids), skip_special_tokens=True)).strip())

    def pieces(self, ids: Iterable[int]) -> tuple[str, ...]:
        """What each token up to the first end stands for, alone."""
        return tuple(str(self._tokenizer.decode([token])) for token in self._until_end(ids))

    def _until_end(self, ids: Iterable[int]) -> list[int]:
        kept: list[int] = []
        for token in ids:
            if int(token) == self.end:
                break
            kept.append(int(token))
        return kept

    def to_json(self) -> dict[str, Any]:
        """The codec as a JSON object, without the tokenizer, which is a file of its own."""
        return {
            "kind": "subwords",
            "begin": self.begin,
            "end": self.end,
            "pad": self.pad,
            "max_length": self.max_length,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], tokenizer: Path) -> SubwordCodec:
        """The codec that ``to_json`` described, with its tokenizer's file."""
        try:
            kept = {key: int(fields[key]) for key in ("begin", "end", "pad", "max_length")}
            return cls(tokenizer.read_text(encoding="utf-8"), **kept)
        except (KeyError, TypeError, OSError) as error:
            raise TextError(
                f"A subword codec needs begin, end, pad, max_length and {tokenizer.name}: {error}"
            ) from None
