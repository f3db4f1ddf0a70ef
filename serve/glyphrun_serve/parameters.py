"""What several routes are asked with."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Query, Request
from starlette.datastructures import Headers

from glyphrun_serve.errors import RequestError

# Serve's own name for it; a proxy may pass on no underscores, so dashes do as well.
ADAPTER_HEADER = "serve_multiplexed_model_id"


def adapter_in(headers: Headers) -> str:
    """The adapter that headers name, "" if they name none."""
    return headers.get(ADAPTER_HEADER) or headers.get(ADAPTER_HEADER.replace("_", "-")) or ""


def asked_model(
    request: Request,
    model: Annotated[
        str | None,
        Query(description="Which of the served models reads it, an adapter of one as NAME:ADAPTER; see `/v1/models`."),
    ] = None,
    documented: Annotated[
        str | None,
        Header(alias=ADAPTER_HEADER, description="An adapter of the model that answers where none is asked for."),
    ] = None,
) -> str | None:
    """The name of the model that a request asks for. Raises RequestError if it asks for two."""
    adapter = adapter_in(request.headers)
    if not adapter:
        return model
    if model is not None and model.partition(":")[2] != adapter:
        message = (
            f"The request asks for the model {model!r} and in {ADAPTER_HEADER} for the adapter {adapter!r}; send one."
        )
        raise RequestError(422, "two_models", message)
    return model or f":{adapter}"


ModelName = Annotated[str | None, Depends(asked_model)]
