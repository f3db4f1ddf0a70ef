"""``glyphrun lm`` and ``glyphrun lexicon``: what is known of texts, for correction."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from glyphrun.cli.options import REGISTRY, DatasetArgument, ModelArgument, RegistryOption, console, plain_errors

lm = typer.Typer(help="Train character language models.", no_args_is_help=True)
lexicon = typer.Typer(help="Make lexicons and learn which characters a model confuses.", no_args_is_help=True)

TextArgument = Annotated[
    Path, typer.Argument(help="A text, a word list with counts (.tsv), or a data set whose train labels are taken.")
]


@lm.callback()
def _lm() -> None:
    """Keeps ``train`` a verb of its own while it is the only one."""


@lm.command("train")
def lm_train(
    text: TextArgument,
    out: Annotated[Path, typer.Argument(help="Model to write, in ARPA form (.arpa).")],
    order: Annotated[int, typer.Option(help="Characters of an n-gram.", min=2, max=6)] = 6,
) -> None:
    """A character n-gram model by interpolated modified Kneser-Ney.

    Example: [bold]glyphrun lm train lines/data french.arpa --order 6[/]
    """
    from glyphrun.language.ngram import train, write_arpa

    with plain_errors():
        if out.suffix != ".arpa":
            raise ValueError(
                f"{out} must end in .arpa: the Python module of kenlm reads its .binary but cannot write it; "
                f"kenlm's build_binary makes one of an ARPA file"
            )
        model = train(_texts(text), order)
        write_arpa(model, out)
    counts = ", ".join(f"{len(level)} of {length}" for length, level in enumerate(model.log_probs, start=1))
    console.print(f"{out}: order {model.order}, n-grams: {counts}", soft_wrap=True)


@lexicon.command("build")
def lexicon_build(
    source: TextArgument,
    out: Annotated[Path, typer.Argument(help="Word list with counts to write (.tsv).")],
) -> None:
    """The words of texts with how often they occur; entries of a word list stay as they are, spaces and all.

    Example: [bold]glyphrun lexicon build lines/data french.tsv[/]
    """
    from glyphrun.language.lexicon import Lexicon

    with plain_errors():
        if out.suffix != ".tsv":
            raise ValueError(f"{out} must end in .tsv, which is how a word list is known from a text")
        made = Lexicon.load(source) if source.suffix == ".tsv" else Lexicon.of_texts(_texts(source))
        made.save(out)
    console.print(f"{out}: {len(made.entries)} entries, counted {sum(made.entries.values())} times", soft_wrap=True)


@lexicon.command("confusions")
def lexicon_confusions(
    model: ModelArgument,
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Argument(help="Counts to write (.json).")],
    split: Annotated[str, typer.Option(help="Split to learn from.")] = "val",
    registry: RegistryOption = REGISTRY,
) -> None:
    """Read a split and count which characters the model takes for which.

    Example: [bold]glyphrun lexicon confusions lines-bundle lines/data lexicon.confusions.json[/]
    """
    from glyphrun.bundle import load_engine
    from glyphrun.data.batches import load_split
    from glyphrun.evaluation.evaluate import read_split
    from glyphrun.language.confusions import learn_confusions, save_confusions
    from glyphrun.registry import Registry

    with plain_errors():
        engine = load_engine(Registry(registry).resolve(model))
        # What a correction has mended would look as if it had been read right.
        engine = engine.with_settings(engine.settings.model_copy(update={"correction": None}))
        labelled = load_split(dataset, split, engine.processor)
        readings = [prediction.text for prediction in read_split(engine, labelled)]
        learnt = learn_confusions(zip(labelled.texts, readings, strict=True))
        if not learnt.characters:
            raise ValueError(
                f"{model} reads no text of {split} nearly right, so nothing can be learnt of what it confuses: train it longer"
            )
        save_confusions(learnt, out)
    wrong, missed, invented = learnt.errors
    console.print(
        f"{out}: of {learnt.characters} characters {wrong} read wrong, {missed} missed; {invented} invented",
        soft_wrap=True,
    )


def _texts(source: Path) -> Iterator[tuple[str, int]]:
    from glyphrun.data.sample import iterate_samples
    from glyphrun.language.corpus import read_weighted

    if not source.is_dir():
        yield from read_weighted(source)
        return
    for sample in iterate_samples(source, "train"):
        if sample.text:
            yield sample.text, 1
