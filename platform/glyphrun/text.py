"""Text to token ids and back: the normal form, the charset and the codec.

Token ids follow the published PARSeq: 0 ends a text, 1..n are the characters in charset order,
n+1 begins a text and n+2 pads a batch. A head predicts the first n+1 of them.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

NORMAL_FORM: Final = "NFC"
DIGITS = "0123456789"


class TextError(ValueError):
    """A text or a charset cannot be used; the message names the character and its code point."""


def normalise(text: str) -> str:
    """The text in Unicode normal form C, the one form of labels, readings and scores.

    One form is needed because equal-looking texts may differ in code points. NFC keeps Latin accents as one
    character each, and it splits the few letters that Unicode excludes from composition, such as Odia U+0B5C
    (U+0B21 U+0B3C): comparing a raw label with a normalised reading would count such a letter as an error.
    """
    return unicodedata.normalize(NORMAL_FORM, text)


def describe(character: str) -> str:
    """A character for an error sentence: itself, its code point and its Unicode name."""
    name = unicodedata.name(character, "no name")
    return f"{character!r} (U+{ord(character):04X} {name})"


@dataclass(frozen=True)
class Codec:
    """A charset in a fixed order and the longest text, with the token ids that follow from them.

    Raises TextError for an empty charset, a repeated character or one that the normal form would change.
    """

    charset: str
    max_length: int

    def __post_init__(self) -> None:
        if not self.charset:
            raise TextError("The charset is empty; give at least one character.")
        if self.max_length < 1:
            raise TextError(f"max_length is {self.max_length}; the longest text has at least one character.")
        repeated = [character for character, times in Counter(self.charset).items() if times > 1]
        if repeated:
            raise TextError(f"The charset holds {describe(repeated[0])} more than once; keep one of them.")
        for character in self.charset:
            form = normalise(character)
            if form != character:
                code_points = " ".join(f"U+{ord(part):04X}" for part in form)
                raise TextError(
                    f"The charset holds {describe(character)}, which {NORMAL_FORM} writes as {code_points}; "
                    f"no normalised text contains it, so put {code_points} in its place."
                )

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.charset, start=1)}

    @property
    def end(self) -> int:
        return 0

    @property
    def begin(self) -> int:
        return len(self.charset) + 1

    @property
    def pad(self) -> int:
        return len(self.charset) + 2

    @property
    def num_classes(self) -> int:
        """What a head predicts: the end and the characters."""
        return len(self.charset) + 1

    @property
    def num_tokens(self) -> int:
        """What an embedding holds: the end, the characters, the beginning and the padding."""
        return len(self.charset) + 3

    def encode(self, text: str) -> list[int]:
        """Ids of the normalised text's characters, without begin and end.

        Raises TextError for a character outside the charset or a text longer than max_length.
        """
        text = normalise(text)
        if len(text) > self.max_length:
            raise TextError(f"{text!r} has {len(text)} characters; the limit is {self.max_length}.")
        for position, character in enumerate(text):
            if character not in self._ids:
                raise TextError(
                    f"{describe(character)} at position {position} of {text!r} is not in the charset "
                    f"of {len(self.charset)} characters."
                )
        return [self._ids[character] for character in text]

    def encode_batch(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids (B, longest + 2), int64: begin, the characters, end, then padding."""
        import torch  # here, so that data workers which only check texts start without it

        encoded = [self.encode(text) for text in texts]
        longest = max((len(ids) for ids in encoded), default=0)
        tokens = torch.full((len(encoded), longest + 2), self.pad, dtype=torch.long)
        for row, ids in zip(tokens, encoded, strict=True):
            row[: len(ids) + 2] = torch.tensor([self.begin, *ids, self.end])
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first end, or all of it when there is no end.

        Raises TextError for an id before the end that is not a character's.
        """
        characters: list[str] = []
        for position, token in enumerate(ids):
            token = int(token)
            if token == self.end:
                break
            if not 1 <= token <= len(self.charset):
                name = {self.begin: "begin", self.pad: "pad"}.get(token, "no token of this codec")
                raise TextError(
                    f"Id {token} ({name}) at position {position} is not a character; "
                    f"characters have the ids 1 to {len(self.charset)}."
                )
            characters.append(self.charset[token - 1])
        return "".join(characters)

    def pieces(self, ids: Iterable[int]) -> tuple[str, ...]:
        """What each token up to the first end stands for: a character."""
        return tuple(self.decode(ids))

    def to_json(self) -> dict[str, Any]:
        """The codec as a JSON object, with the normal form it stands for."""
        return {"charset": self.charset, "max_length": self.max_length, "normal_form": NORMAL_FORM}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Codec:
        """The codec that `to_json` wrote; raises TextError for other keys or another normal form."""
        expected = {"charset", "max_length", "normal_form"}
        if set(fields) != expected:
            raise TextError(f"A codec has the keys {sorted(expected)}; these were given: {sorted(fields)}.")
        if fields["normal_form"] != NORMAL_FORM:
            raise TextError(f"The codec was made for {fields['normal_form']!r}; only {NORMAL_FORM} is supported.")
        if not isinstance(fields["charset"], str) or not isinstance(fields["max_length"], int):
            raise TextError("A codec's charset is a string and its max_length a whole number.")
        return cls(fields["charset"], fields["max_length"])
