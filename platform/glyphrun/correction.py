"""From the settings of a correction and the folder of its files to what corrects, in a beam and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import inf
from pathlib import Path

import torch

from glyphrun.decoding.rescore import Corrector
from glyphrun.decoding.scorer import Scorer
from glyphrun.decoding.settings import CorrectionSettings
from glyphrun.language.causal import CausalLM
from glyphrun.language.confusions import Confusions, load_confusions
from glyphrun.language.fusion import ShallowFusion
from glyphrun.language.lexicon import Lexicon
from glyphrun.language.lm import CharacterLM
from glyphrun.language.spelling import Speller
from glyphrun.subwords import SubwordCodec
from glyphrun.text import Codec

ANCHORS = frozenset("0123456789|_#+=")  # nothing combines with these


class CorrectionError(ValueError):
    """A correction cannot be set up; the message names the file or the setting."""


def load_corrector(folder: Path, settings: CorrectionSettings, *, device: torch.device | None = None) -> Corrector:
    """What corrects by files that lie in a folder, such as a bundle's; device: where a causal model runs.

    Raises CorpusError, LanguageModelError or HubError, all of them ValueErrors that name the file.
    """
    speller = None
    if settings.lexicon is not None:
        confusions = load_confusions(folder / settings.confusions) if settings.confusions else Confusions()
        lexicon = Lexicon.load(folder / settings.lexicon)
        speller = Speller(lexicon, confusions, max_edits=settings.max_edits, weight=settings.lexicon_weight)
    model: CharacterLM | CausalLM | None = None
    if settings.language_model is not None:
        path = folder / settings.language_model
        if settings.counts_ngrams:
            model = CharacterLM(path)
        else:
            model = CausalLM.load(str(path) if path.is_dir() else settings.language_model, device=device)
    return Corrector(speller, model, settings.lm_weight, settings.length_bonus)


def shallow_scorer(corrector: Corrector, settings: CorrectionSettings, codec: Codec | SubwordCodec) -> Scorer | None:
    """What weighs the codec's tokens inside a beam; None where the language model is for the n-best alone."""
    if settings.lm_fusion != "shallow":
        return None
    if not isinstance(corrector.language_model, CharacterLM):
        raise CorrectionError(f"{settings.language_model} cannot follow a beam: choose lm_fusion: rerank")
    return ShallowFusion(
        corrector.language_model,
        token_texts(codec),
        weight=settings.lm_weight,
        length_bonus=settings.length_bonus,
        longest=1 if codec.charset else inf,
    )


def token_texts(codec: Codec | SubwordCodec) -> Callable[[Sequence[int]], str]:
    """The text that some tokens stand for inside a longer one, with the space that a subword may begin with."""
    if isinstance(codec, Codec):
        return codec.decode
    anchor, before, after = _anchor(codec)

    @lru_cache(maxsize=codec.num_tokens)
    def text_of(tokens: Sequence[int]) -> str:
        # A tokenizer drops the spaces at both ends of a text, so that the tokens need neighbours.
        return codec.decode([anchor, *tokens, anchor])[before:-after]

    return text_of


def _anchor(codec: SubwordCodec) -> tuple[int, int, int]:
    """A token that joins its neighbours without a space, and how long its text is first and last."""
    for token in range(codec.num_tokens):
        first = codec.decode([token])
        last = codec.decode([token, token])[len(first) :]
        if first[-1:] in ANCHORS and last and not last[0].isspace():
            return token, len(first), len(last)
    raise CorrectionError(
        "shallow fusion needs a tokenizer with a token for a single numeral: choose lm_fusion: rerank"
    )


def correction_files(settings: CorrectionSettings, folder: Path) -> tuple[CorrectionSettings, dict[str, Path]]:
    """The settings with the names that files have in a bundle, and for each name the file to copy there.

    Settings name files as seen from the folder; a causal model on a hub stays there. Raises CorrectionError for a file that
    is not there and for two of one name.
    """
    names: dict[str, str] = {}
    files: dict[str, Path] = {}
    for field in ("lexicon", "confusions", "language_model"):
        given = getattr(settings, field)
        if given is None:
            continue
        path = folder / given
        if path.is_dir():
            found = {
                f"{path.name}/{file.relative_to(path).as_posix()}": file for file in path.rglob("*") if file.is_file()
            }
        elif path.is_file():
            found = {path.name: path}
        elif field == "language_model" and not settings.counts_ngrams:
            continue
        else:
            raise CorrectionError(f"correction.{field}: there is no file {path}")
        if taken := sorted(found.keys() & files.keys()):
            raise CorrectionError(f"correction.{field}: a bundle has room for one {taken[0]}: give {path} another name")
        files |= found
        names[field] = path.name
    return settings.model_copy(update=names), dict(sorted(files.items()))
