"""Verbs of the registry: its models, their versions, and a server of one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from glyphrun.cli.options import (
    REGISTRY,
    JsonOption,
    ModelArgument,
    RegistryOption,
    console,
    plain_errors,
    progress_bar,
)

if TYPE_CHECKING:
    from glyphrun.version_diff import Change

SHOWN = 10
LONGEST_VALUE = 40

app = typer.Typer()


@app.command()
def models(as_json: JsonOption = False, registry: RegistryOption = REGISTRY) -> None:
    """The models of the registry.

    Example: [bold]glyphrun models[/]
    """
    from glyphrun.registry import Registry
    from glyphrun.versions import RegistryError

    table = Table("name", "version", "promoted", "recognizer", "exact on test")
    rows, broken = [], []
    with plain_errors():
        known = Registry(registry)
        for name in known.names():
            try:
                model = known.model(name)
                promotion, manifest = known.promotion(name, model.version), known.manifest(name, model.version)
            except RegistryError as error:
                broken.append(str(error))
                continue
            rows.append({**asdict(model), "promotion": promotion.model_dump(mode="json"), "metrics": manifest.metrics})
            scores = manifest.metrics.get("test") or manifest.metrics.get("val")
            table.add_row(
                name,
                f"{model.version} of {len(model.versions)}",
                f"{promotion.at:%Y-%m-%d}{', forced' if promotion.forced else ''}",
                manifest.recognizer["kind"],
                f"{scores['exact']:.3f}" if scores else "",
            )
        if as_json:
            print(json.dumps(rows, ensure_ascii=False))
        else:
            console.print(table)
        if broken:
            raise RegistryError("\n".join(broken))


@app.command()
def diff(
    name: Annotated[str, typer.Argument(help="Name in the registry.")],
    one: Annotated[int, typer.Argument(help="A version.")],
    other: Annotated[int, typer.Argument(help="Another one.")],
    dataset: Annotated[Path | None, typer.Option(help="Data set that both are to read.", show_default=False)] = None,
    split: Annotated[str, typer.Option(help="Split of it.")] = "test",
    as_json: JsonOption = False,
    registry: RegistryOption = REGISTRY,
) -> None:
    """What differs between two versions: settings, scores, weights, and the items that they read differently.

    What they read is known of a version and the one that it was compared with; --dataset has any two read again.

    Example: [bold]glyphrun diff shirt-numbers 1 2[/]
    """
    from glyphrun.ensemble_bundle import load_reader
    from glyphrun.promotion import read_both
    from glyphrun.registry import Registry
    from glyphrun.version_diff import diff_versions

    with plain_errors(), progress_bar("items") as progress:
        known, readings = Registry(registry), None
        if dataset is not None:
            first, second = (load_reader(known.resolve(f"{name}@{version}")) for version in (one, other))
            readings = read_both(first, second, dataset, split, progress)
        found = diff_versions(known, name, one, other, readings)
    if as_json:
        print(found.model_dump_json())
        return
    for title, changes in (("settings", found.settings), ("scores", found.metrics), ("weights", found.weights)):
        _show_changes(title, changes, one, other)
    if found.items is None:
        console.print("It is not known what both read of the same items: --dataset has them read.")
        return
    for title, items in (
        (f"{one} right, {other} wrong", found.items.only_one_right),
        (f"{one} wrong, {other} right", found.items.only_other_right),
        ("both wrong, differently", found.items.both_wrong),
    ):
        console.print(f"{title}: {len(items)} of {found.items.n} items of {found.items.dataset}, {found.items.split}")
        for item in items[:SHOWN]:
            console.print(
                f"  {item.sample_id}\t{item.truth!r}\t{item.one!r} → {item.other!r}", markup=False, highlight=False
            )
        if len(items) > SHOWN:
            console.print(f"  … {len(items) - SHOWN} more with --json")


@app.command()
def serve(
    model: ModelArgument,
    port: Annotated[
        int | None,
        typer.Option(help="Port to listen on, 8000 by default; 0 takes any free one.", min=0, max=65535),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on, 127.0.0.1 by default; any but this machine's own needs tokens."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Serve config whose settings the model is served with; its bundle is not.", show_default=False
        ),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="File of `glyphrun token`: only who bears one is answered.", show_default=False)
    ] = None,
    log_samples: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which requests are kept, images and all, to be labelled: those read with less than 60 % confidence, "
            "abstained from, or read differently by members of an ensemble. At most 1,000 of them and 256 MiB; the oldest go.",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FOLDER of a LoRA adapter trained on the model, asked for as MODEL:NAME; may be given several times.",
            show_default=False,
        ),
    ] = None,
    registry: RegistryOption = REGISTRY,
) -> None:
    """Serve a model over HTTP with a page to try it, until Ctrl-C.

    Example: [bold]glyphrun serve shirt-numbers[/] or [bold]glyphrun serve shirt-numbers --config serve/configs/local.yaml[/],
    with adapters [bold]glyphrun serve ink --adapter 1890s=runs/ink/trials/001-parseq-tiny/adapters/step-000050[/]
    """

    import ray

    from glyphrun.bundle import parse_manifest
    from glyphrun.cluster import gpus, wait_for_interrupt
    from glyphrun.registry import Registry
    from glyphrun_serve.announced import announced
    from glyphrun_serve.app import ServeSettings, run
    from glyphrun_serve.config_check import ServeConfig, read_config
    from glyphrun_serve.sample_log import SampleLog

    with plain_errors():
        bundle = Registry(registry).resolve(model)
        plain = ServeConfig(ServeSettings(bundle=bundle, gpus=gpus()))
        chosen = plain if config is None else read_config(config, bundle)
        settings = chosen.settings
        if tokens is not None:
            settings = settings.model_copy(update={"access": settings.access.model_copy(update={"tokens": tokens})})
        if log_samples is not None:
            kept = settings.log_samples or SampleLog(folder=log_samples)
            settings = settings.model_copy(update={"log_samples": kept.model_copy(update={"folder": log_samples})})
        if adapter:
            adapters = settings.adapters | dict(map(_named_folder, adapter))
            settings = ServeSettings.model_validate({**dict(settings), "adapters": adapters})  # checks the names
        host, port = host or chosen.host, chosen.port if port is None else port
    with (
        plain_errors(),
        run(settings, host=host, port=port, options=chosen.options) as server,
        announced(parse_manifest(bundle).name, server.url, ray.get_runtime_context().gcs_address),
        suppress(KeyboardInterrupt),  # somebody may not wait until all of this is said
    ):
        console.print(f"{server.url}/  (Ctrl-C stops)", soft_wrap=True)
        for name, start in server.started.items():
            parts = {"imports": start.import_ms, "load": start.load_ms, "warm-up": start.warm_up_ms}
            console.print(f"{name}: {', '.join(f'{part} {spent / 1e3:.2f} s' for part, spent in parts.items())}")
        console.print(f"Ready after {server.ready_s:.1f} s")
        wait_for_interrupt()
    console.print("Stopped.")


def _named_folder(given: str) -> tuple[str, Path]:
    name, _, folder = given.partition("=")
    if not folder:
        raise ValueError(f"--adapter {given}: it has the form NAME=FOLDER, such as night=runs/night/adapter")
    return name, Path(folder)


def _show_changes(title: str, changes: Sequence[Change], one: int, other: int) -> None:
    if not changes:
        console.print(f"{title}: the same")
        return
    table = Table(title, str(one), str(other))
    for change in changes:
        table.add_row(change.key, *(escape(_short(value)) for value in (change.one, change.other)))
    console.print(table)


def _short(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    shown = str(value)
    return shown if len(shown) <= LONGEST_VALUE else f"{shown[:LONGEST_VALUE]}…"
