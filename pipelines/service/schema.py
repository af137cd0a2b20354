"""What the search API takes and gives: the models behind its OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

LONGEST_QUERY = 2000  # characters
Status = Literal["matched", "not_found", "partial"]


class SearchBody(BaseModel):
    """A search for one moment."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_QUERY)]
    corpus: str | None = Field(None, description="name of a corpus; may be left out where there is only one")
    model: str | None = Field(None, description="name of a model; may be left out for the first")
    max_turns: int | None = Field(None, ge=1, le=16, description="videos looked at; empty: as the agent was trained")
    top_k: int = Field(10, ge=1, le=100, description="videos listed of each ranking")
    exclude_ids: list[str] = Field([], max_length=1000, description="videos that are not looked at")
    threshold: float | None = Field(None, ge=-1, le=1, description="least score of a moment's video")
    stream: bool = Field(False, description="server-sent events instead of one answer")


class Found(BaseModel):
    video_id: str
    score: float


class Moment(BaseModel):
    """The answer: seconds of a video; `score` is that of the video in the ranking it was taken from."""

    video_id: str
    start: float
    end: float
    score: float


class TurnTrace(BaseModel):
    turn: int
    retrieved: list[Found]
    video_id: str | None = Field(None, description="the video that was looked at")
    rank: int | None = Field(None, description="its place in `retrieved`")
    verdict: Literal["matched", "not_matched", "unknown"] | None = None
    reasoning: str = ""
    refined: list[Found] | None = Field(None, description="the ranking after the query was refined")
    seconds: float = 0.0


class Usage(BaseModel):
    prompt_tokens: int
    text_tokens: int
    latent_tokens: int
    seconds: float


class SearchAnswer(BaseModel):
    """`partial`: the time limit ended the search; `moments` is empty unless the status is `matched`."""

    id: str
    status: Status
    query: str
    corpus: str
    moments: list[Moment]
    turns: list[TurnTrace]
    usage: Usage
    model: str
    weight_version: int = Field(description="0 at the start, one more with each swap of the model's weights")
    index_version: str | None


class Problem(BaseModel):
    code: str = Field(description="for programs")
    message: str = Field(description="for people: what is wrong, and the fix")


class ErrorAnswer(BaseModel):
    error: Problem


class Corpus(BaseModel):
    name: str
    videos: int
    index_version: str


class Video(BaseModel):
    video_id: str
    duration: float = Field(description="seconds, up to a frame interval past the last frame that is kept")


class Health(BaseModel):
    status: Literal["ok", "starting"]
    detail: dict[str, Any] = Field({}, description="of each corpus")
    models: dict[str, int] = Field({}, description="of each model the number of its agents")
