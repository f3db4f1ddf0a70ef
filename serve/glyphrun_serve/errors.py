"""One JSON shape for everything that a request can get wrong."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from glyphrun_serve.request_ids import current_request
from glyphrun_serve.schemas import ErrorAnswer, ErrorDetail

_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
}
RETRY_AFTER_S = "2"  # about as long as a full queue takes to be read, and a part of what a new replica takes


class RequestError(HTTPException):
    """A request, or one item of it, that cannot be answered: a status, a code for programs and a sentence for people."""

    def __init__(
        self, status: int, code: str, message: str, *, item: int | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code
        self.item = item

    def answer(self) -> ErrorAnswer:
        named = current_request.get()
        return ErrorAnswer(
            error=ErrorDetail(code=self.code, message=str(self.detail), item=self.item, request_id=named)
        )


def error_response(error: RequestError) -> JSONResponse:
    headers = dict(error.headers or {})
    if error.status_code == 503:
        headers.setdefault("Retry-After", RETRY_AFTER_S)
    return JSONResponse(error.answer().model_dump(), error.status_code, headers)


def failure_response() -> JSONResponse:
    """The answer to a request on which the server failed."""
    return error_response(
        RequestError(500, "internal", "The server failed on this request; its log says why. Try again later.")
    )


def answer_errors_as_json(app: FastAPI) -> None:
    """Give every refusal by the app the shape of ErrorAnswer, those of the framework too."""
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)


def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, RequestError):
        return error_response(error)
    headers = dict(error.headers or {})
    message = str(error.detail)
    if error.status_code == 404:
        message = f"There is nothing at {request.url.path}; /docs lists what there is."
    elif error.status_code == 405:
        allowed = headers.get("Allow", "another method")
        message = f"{request.url.path} does not take {request.method}; send {allowed}."
    elif error.status_code == 400:
        message = f"The body cannot be read ({message}); /docs shows its shape."
    code = _CODES.get(error.status_code, f"http_{error.status_code}")
    return error_response(RequestError(error.status_code, code, message, headers=headers))


def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] == "json_invalid":
        message = "The body is not valid JSON; /docs shows its shape."
    elif first["type"] == "missing":
        message = f"The request has no {place or 'body'}; /docs shows its shape."
    elif first["type"] == "model_attributes_type" and "json" not in request.headers.get("content-type", ""):
        message = "The body was not said to be JSON; send it with the header Content-Type: application/json."
    elif "UploadFile" in first["msg"]:  # pydantic knows it by no type of its own
        field = place.partition(".")[0]
        message = f"The request's {place} is text where a file is asked for; with curl: -F {field}=@FILE."
    elif first["type"] == "string_type" and isinstance(first["input"], UploadFile):
        message = f"The request's {place} is a file where text is asked for; with curl: -F '{place}=<FILE'."
    else:
        message = f"The request's {place or 'body'} is wrong ({first['msg']}); /docs shows its shape."
    return error_response(RequestError(422, "invalid_request", message))
