"""The check of a cluster file before ``ray up``: Ray's own validator, the machines of the cloud, what is yet to fill in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from jsonschema import ValidationError  # type: ignore[import-untyped]
from ray.autoscaler._private.util import prepare_config, validate_config

from glyphrun.gcp import instance_problems

PLACEHOLDER = re.compile(r"YOUR_[A-Z0-9_]+")


def cluster_file_problems(path: Path) -> list[str]:
    """Why ``ray up`` with this file would fail, or start what cannot work; a sentence each, none if all is well."""
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return [f"{path} cannot be read: {error}"]
    if not isinstance(declared, dict):
        return [f"{path} holds no keys: a cluster file starts with cluster_name:"]
    found = [*_schema(declared), *_placeholders(declared, "")]
    if (declared.get("provider") or {}).get("type") == "gcp":
        for name, kind in (declared.get("available_node_types") or {}).items():
            if isinstance(kind, dict):
                found += instance_problems(name, kind, head=name == declared.get("head_node_type"))
    return [f"{path}: {problem}" for problem in found]


def _schema(declared: dict[str, Any]) -> Iterator[str]:
    try:
        validate_config(prepare_config(deepcopy(declared)))
    except ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the file"
        yield f"{place}: {error.message.splitlines()[0]}"
    except Exception as error:  # what else is wrong shows in as many ways as there are keys
        yield f"Ray cannot read it: {type(error).__name__}: {error}"


def _placeholders(value: Any, at: str) -> Iterator[str]:
    """What is still named YOUR_… and where."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _placeholders(inner, f"{at}.{key}".strip("."))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _placeholders(inner, f"{at}.{place}")
    elif isinstance(value, str):
        for name in dict.fromkeys(PLACEHOLDER.findall(value)):
            yield f"{at} still has {name}: put yours"
