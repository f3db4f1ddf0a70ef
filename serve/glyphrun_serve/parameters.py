"""What several routes are asked with."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

ModelName = Annotated[str | None, Query(description="Which of the served models reads it; see `/v1/models`.")]
