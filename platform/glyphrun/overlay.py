"""Settings laid over settings."""

from __future__ import annotations

from typing import Any


def overlay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of base with the changes in place; where both hold a mapping, theirs are laid over each other in turn."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlay(merged[key], value) if nested else value
    return merged
