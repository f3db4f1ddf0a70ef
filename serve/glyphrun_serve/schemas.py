"""What goes over the wire."""

from __future__ import annotations

from math import exp
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from glyphrun.prediction import Prediction

HEARD = ("voted", "averaged")
Pixels = Annotated[float, Field(ge=-1e6, le=1e6)]


class Reading(BaseModel):
    text: str
    confidence: float = Field(description="Probability of this reading, 0 to 1.")


class Character(BaseModel):
    character: str
    confidence: float = Field(description="Probability of this character given those before it, 0 to 1.")


class Vote(BaseModel):
    frame: int = Field(description="Counted from 0, in the order sent.")
    frames: int = Field(1, description="How many frames from there on: more than 1 where windows vote.")
    text: str = Field(description="What this frame says alone; empty if nothing is readable in it.")
    confidence: float
    weight: float = Field(description="How much the frame counts; 0 if it was ignored.")


class Member(BaseModel):
    member: str = Field(description="Its name in the ensemble.")
    text: str = Field(
        description="What this recognizer says alone, or all together where they are averaged; empty if nothing is "
        "readable or it is left out."
    )
    confidence: float = Field(description="Probability of what it says, 0 to 1.")
    weight: float = Field(description="How much it counts; 0 if it was ignored or left out.")
    ms: float | None = Field(
        description="How long its answer took, decoding and waiting for a batch included; null if none came in time."
    )
    status: str = Field(description="voted or averaged, else why it is left out: late, or failed and the reason.")


class ModelIdentity(BaseModel):
    """Which weights answered, and how they were read; what else the bundle says of its origin stands beside the name."""

    model_config = ConfigDict(extra="allow")

    name: str
    version: str
    decode: dict[str, Any] = Field(
        default={}, description="The decode settings; of an ensemble those after its vote, and its members' own."
    )


class ModelCard(BaseModel):
    """What a served model reads and how well it was measured to read."""

    name: str
    version: str
    kind: str
    members: dict[str, str] = Field(
        default={}, description="The kind of each recognizer of an ensemble, by its name; empty for a single one."
    )
    vote: str | None = Field(default=None, description="How the members of an ensemble are heard.")
    charset: str
    max_length: int
    height: int
    width: int
    decode: dict[str, Any] = {}
    metrics: dict[str, Any]
    provenance: dict[str, str]
    role: str | None = Field(
        default=None,
        description="While two releases are served: champion, which answers who asks for no version, or challenger.",
    )

    def identity(self) -> ModelIdentity:
        return ModelIdentity.model_validate(
            {**self.provenance, "name": self.name, "version": self.version, "decode": self.decode}
        )


class Models(BaseModel):
    models: list[ModelCard]


class Answer(BaseModel):
    """The reading of one item."""

    text: str = Field(description="The best reading; empty if nothing is readable.")
    confidence: float
    n_best: list[Reading]
    characters: list[Character]
    votes: list[Vote] = Field(description="One a frame, or one a window; empty if explain was false.")
    members: list[Member] = Field(description="What each recognizer of an ensemble says; empty for a single one.")
    abstained: bool = Field(description="True if the confidence is under the model's own threshold.")
    degraded: bool = Field(description="True if a member of an ensemble is left out.")
    timings_ms: dict[str, float]
    model: ModelIdentity


class EmbedAnswer(BaseModel):
    """Encoder features of one item."""

    pooled: list[float] = Field(description="Mean of all patches of all frames.")
    frames: list[list[list[float]]] = Field(description="For each frame sent a feature for each patch of the picture.")
    model: ModelIdentity


class ErrorDetail(BaseModel):
    code: str
    message: str = Field(description="What was wrong and what to do.")
    item: int | None = Field(default=None, description="Which item of a batch, counted from 0.")
    request_id: str | None = Field(default=None, description="As in the header X-Request-Id and in the server's log.")


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class BatchItem(BaseModel):
    """A still image or the frames of one tracklet."""

    frames: list[str] = Field(description="Encoded images (JPEG, PNG, …) in base64.")


class BatchRequest(BaseModel):
    # Items are checked one by one later, so that a bad one fails alone.
    items: list[SkipValidation[BatchItem]]


class BatchAnswer(BaseModel):
    items: list[Answer | ErrorAnswer] = Field(description="In the order sent.")


class ClipBox(BaseModel):
    """Where a tracklet is in one frame of a clip."""

    model_config = ConfigDict(extra="forbid")

    tracklet: str = Field(min_length=1, max_length=200)
    frame: int = Field(ge=0, description="Counted from 0.")
    box: tuple[Pixels, Pixels, Pixels, Pixels] = Field(description="x, y, width and height in pixels.")


class TrackletAnswer(BaseModel):
    """The event `reading`: a tracklet of a clip has been read."""

    tracklet: str
    frames: list[int] = Field(description="Which frames of the clip were read, in the order of the votes.")
    answer: Answer


class TrackletError(BaseModel):
    """The event `error`: a tracklet could not be read, or, where it is null, the clip breaks off."""

    tracklet: str | None
    error: ErrorDetail


class ClipEnd(BaseModel):
    """The event `done`: the whole clip has been read."""

    tracklets: int
    frames: int = Field(description="Pictures read in all tracklets.")


class Health(BaseModel):
    status: str


class ColdStart(BaseModel):
    """How long a replica took until it could read, once Ray had started its process."""

    import_ms: float = Field(description="Importing what it needs, such as torch.")
    load_ms: float = Field(description="Checking and loading what it reads with.")
    warm_up_ms: float = Field(description="Reading blank pictures of the shapes that will come.")


class Ready(Health):
    started: dict[str, ColdStart] = Field(description="By deployment: a recognizer each, and what decodes images.")


def answer(prediction: Prediction, model: ModelIdentity, total_ms: float) -> Answer:
    """The wire form of a prediction; total_ms is the time that the request took inside the server."""
    best = prediction.n_best[0]
    # Recognizers score the end of a text after its tokens, so the two differ in length.
    characters = zip(best.pieces or best.text, best.token_log_probs, strict=False)
    return Answer(
        text=prediction.text,
        confidence=prediction.confidence,
        n_best=[Reading(text=found.text, confidence=exp(found.log_prob)) for found in prediction.n_best],
        characters=[Character(character=character, confidence=exp(score)) for character, score in characters],
        votes=[
            Vote(
                frame=ballot.frame,
                frames=ballot.frames,
                text=ballot.text,
                confidence=ballot.confidence,
                weight=ballot.weight,
            )
            for ballot in prediction.votes
        ],
        members=[Member.model_validate(vars(member)) for member in prediction.members],
        abstained=prediction.abstained,
        degraded=any(member.status not in HEARD for member in prediction.members),
        timings_ms={stage: round(spent, 3) for stage, spent in {**prediction.timings, "total": total_ms}.items()},
        model=model,
    )
