"""A typed client of a glyphrun server; it imports neither torch nor Ray.

with Client("http://127.0.0.1:8000", token="glyphrun_…") as client:
    print(client.recognize(Path("0.jpg").read_bytes()).text)
"""

from glyphrun.client.asynchronous import AsyncClient
from glyphrun.client.blocking import Client
from glyphrun.client.calls import ClipEvent, ClipTracklet, ServerError
from glyphrun.client.retries import Retries
from glyphrun_serve.schemas import Answer, ClipBox, ClipEnd, EmbedAnswer, ErrorDetail, ModelCard, TrackletError

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ClipBox",
    "ClipEnd",
    "ClipEvent",
    "ClipTracklet",
    "EmbedAnswer",
    "ErrorDetail",
    "ModelCard",
    "Retries",
    "ServerError",
    "TrackletError",
]
