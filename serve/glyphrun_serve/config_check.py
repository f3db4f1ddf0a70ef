"""Serve configs checked key by key: Serve itself lets misspelled keys pass, and whatever they meant has no effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import HTTPOptionsSchema, ServeDeploySchema

from glyphrun.bundle import MANIFEST, parse_manifest
from glyphrun_serve.app import ServeSettings
from glyphrun_serve.graph import RECOGNIZER, Options, deployments_of, parts_of

APPLICATION = "glyphrun_serve.app:build_app"


class ConfigError(ValueError):
    """A config that Serve would misunderstand; the message names the file, the key and what is known."""


@dataclass(frozen=True)
class ServeConfig:
    """What a config says of one application and of where it listens."""

    settings: ServeSettings
    options: Options = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000


def read_config(path: Path, bundle: Path | None = None) -> ServeConfig:
    """The one application of a config that was checked, with another bundle if one is given. Raises ConfigError."""
    declared = check_config(path, bundle)
    if len(declared["applications"]) != 1:
        raise ConfigError(f"{path} has {len(declared['applications'])} applications; only one can be served like this")
    (application,) = declared["applications"]
    if application["import_path"] != APPLICATION:
        raise ConfigError(f"{path}: applications[0].import_path is not {APPLICATION}: start it with `serve run`")
    http = HTTPOptionsSchema.model_validate(declared.get("http_options", {}))
    arguments = application["args"] | ({"bundle": bundle} if bundle else {})
    return ServeConfig(
        ServeSettings.model_validate(arguments),
        {
            one["name"]: {key: value for key, value in one.items() if key != "name"}
            for one in application.get("deployments", [])
        },
        http.host,
        http.port,
    )


def check_config(path: Path, bundle: Path | None = None) -> dict[str, Any]:
    """A config as it is in the file, every key of which is known and every value of which fits. Raises ConfigError.

    bundle: what is to be served in place of the one that is named there; deployments are those of its graph.
    """
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(declared, dict) or not isinstance(declared.get("applications"), list):
        raise ConfigError(f"{path} is no Serve config: it has no applications")
    unknown = list(_unknown(declared, ServeDeploySchema, ""))
    for place, application in _ours(declared):
        unknown += _unknown_within(application.get("args", {}), [ServeSettings], f"applications[{place}].args")
    if unknown:
        raise ConfigError("\n".join(f"{path}: {said}" for said in unknown))
    _fits(path, "", ServeDeploySchema, declared)
    for place, application in _ours(declared):
        at = f"applications[{place}]."
        settings = _fits(path, f"{at}args.", ServeSettings, application.get("args", {}))
        misfits = [*_cut_off(declared, settings), *(f"{at}{said}" for said in _misfits(application, settings, bundle))]
        if misfits:
            raise ConfigError("\n".join(f"{path}: {said}" for said in misfits))
    return declared


def _ours(declared: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for place, application in enumerate(declared["applications"]):
        if isinstance(application, dict) and application.get("import_path") == APPLICATION:
            yield place, application


def _unknown(value: Mapping[str, Any], model: type[BaseModel], at: str) -> Iterator[str]:
    """A sentence for each key that a model does not have, here and in what it holds."""
    for key, inner in value.items():
        if key in model.model_fields:
            yield from _unknown_within(inner, _models(model.model_fields[key].annotation), f"{at}{key}")
            continue
        near = get_close_matches(str(key), model.model_fields, n=1, cutoff=0.5)
        known = f"the nearest known key is {near[0]}" if near else f"known are {', '.join(model.model_fields)}"
        yield f"{at}{key} is no key that has an effect; {known}"


def _unknown_within(value: object, models: list[type[BaseModel]], at: str) -> Iterator[str]:
    if isinstance(value, list):
        for place, one in enumerate(value):
            yield from _unknown_within(one, models, f"{at}[{place}]")
    elif isinstance(value, dict) and models:
        yield from _unknown(value, models[0], f"{at}.")


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation such as Optional[Union[Dict, Model]] or List[Model] names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _fits(path: Path, at: str, model: type[BaseModel], value: object) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise ConfigError(f"{path}: {at}{place}: {first['msg']}") from None


def _cut_off(declared: Mapping[str, Any], settings: ServeSettings) -> Iterator[str]:
    timeout = declared.get("http_options", {}).get("request_timeout_s")
    if timeout is None or timeout <= settings.limits.answer_s:
        yield (
            f"http_options.request_timeout_s is {timeout} and must be over args.limits.answer_s, {settings.limits.answer_s:g}, "
            "which answers in JSON; without one a request may hang for ever"
        )


def _misfits(application: Mapping[str, Any], settings: ServeSettings, bundle: Path | None) -> Iterator[str]:
    """What Serve takes, and what then goes wrong."""
    known, found = _deployments(bundle or settings.bundle, settings.preprocess)
    for place, one in enumerate(application.get("deployments", [])):
        at, name = f"deployments[{place}]", one["name"]
        if name not in known and (found or not name.startswith(f"{RECOGNIZER}-")):
            yield f"{at}.name: the graph has no deployment {name!r}; it has {', '.join(known)}"
        if (
            name.startswith(RECOGNIZER)
            and one.get("max_ongoing_requests", settings.batching.most) < settings.batching.most
        ):
            yield (
                f"{at}.max_ongoing_requests: {one['max_ongoing_requests']} calls at once can never fill a batch of "
                f"{settings.batching.most}: make it at least twice as many"
            )
        if isinstance(one.get("autoscaling_config"), dict):
            try:
                AutoscalingConfig.model_validate(one["autoscaling_config"])
            except ValidationError as error:
                yield f"{at}.autoscaling_config: {error.errors()[0]['msg']}"


def _deployments(bundle: Path, preprocess: bool) -> tuple[list[str], bool]:
    """What the deployments of a bundle's graph are called, and whether it lies here: else those that there can be."""
    if (bundle / MANIFEST).is_file():
        return deployments_of(parts_of(bundle, parse_manifest(bundle)), preprocess), True
    return [*deployments_of({}, preprocess), RECOGNIZER, f"{RECOGNIZER}-MEMBER"], False
