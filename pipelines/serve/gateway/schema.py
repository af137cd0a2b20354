"""What the search API takes and gives: the models behind its OpenAPI description."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

LONGEST_QUERY = 2000  # characters
LISTED = 10  # videos of a ranking
Status = Literal["matched", "not_found", "partial"]
QUERY = "a red ring moving up, then a blue cross moving down"  # of the examples; theirs are videos of the toy corpus
VideoId = Annotated[str, Path(max_length=500, examples=["test_0001"])]
CorpusName = Annotated[str | None, Query(description="may be left out where there is only one", examples=["toy"])]
Version = Annotated[
    str | None,
    Query(max_length=64, description="the `version` that is wanted; such an answer never changes"),
]
Seconds = Annotated[float, Query(ge=0, allow_inf_nan=False, examples=[2.5])]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]  # JSON has one kind of number: 2.0 is 2
TopK = Annotated[
    Whole | None, Field(ge=1, le=100, description=f"videos listed of each ranking; {LISTED} where it is left out")
]


def example(**values: Any) -> ConfigDict:
    """Return the settings of a body: no field of another name or type, and an example in the description."""
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [values]})


class SearchOptions(BaseModel):
    """How to search. A null is as if it were left out."""

    corpus: str | None = Field(None, description="name of a corpus; may be left out where there is only one")
    max_turns: Whole | None = Field(None, ge=1, le=16, description="videos looked at; empty: as the agent was trained")
    exclude_ids: list[str] | None = Field(None, max_length=1000, description="videos that are not looked at")
    budget: float | None = Field(
        None, ge=0, le=1000, description="of calls into long videos, where the server navigates them; empty: as trained"
    )
    threshold: float | None = Field(None, ge=-1, le=1, description="least score of a moment's video")


class SearchBody(SearchOptions):
    """A search for one moment."""

    model_config = example(query=QUERY, max_turns=2, top_k=5, exclude_ids=["test_0001"])

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_QUERY)]
    top_k: TopK = None
    model: str | None = Field(None, description="name of a model; may be left out for the first")
    stream: bool | None = Field(None, description="server-sent events instead of one answer")


class AskBody(BaseModel):
    """A question about one film. A null is as if it were left out."""

    model_config = example(film="test-0000", question="what colour is the ring where a cross is moving up?", budget=8)

    film: str = Field(min_length=1, max_length=500, description="its id, as `/v1/films` lists it")
    question: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_QUERY)]
    options: list[Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_QUERY)]] | None = Field(
        None, max_length=26, description="answers to choose from, as A, B, ...; left out: an answer in words"
    )
    budget: float | None = Field(None, ge=0, le=1000, description="of calls into the film; empty: as trained")
    corpus: str | None = Field(None, description="name of a corpus; may be left out where there is only one")
    model: str | None = Field(None, description="name of a model; may be left out for the first")
    stream: bool | None = Field(None, description="server-sent events instead of one answer")


class RankedVideo(BaseModel):
    video_id: str
    score: float


class Moment(BaseModel):
    """The answer: seconds of a video; `score` is that of the video in the ranking it was taken from."""

    video_id: str
    start: float
    end: float
    score: float
    thumbnail_url: str = Field(description="the frame in the middle, at this server")
    deep_link: str = Field(description="the page open at the moment, at this server")


class CallTrace(BaseModel):
    """A call of a tool into a long video, or a reply that was to be one."""

    tool: Literal["caption", "video_qa", "look", "find"] | None
    node: list[int] | None = Field(description="numbers of the part, from the coarsest level on")
    start: float | None = Field(description="of the part, in seconds")
    end: float | None
    words: str = Field(description="of a question or a search")
    status: str = Field(description="`ok`, `repeat`, or why nothing was called")
    left: float = Field(description="of the budget, after it")


class TurnTrace(BaseModel):
    turn: int
    retrieved: list[RankedVideo]
    video_id: str | None = Field(None, description="the video that was looked at")
    rank: int | None = Field(None, description="its place in `retrieved`")
    verdict: Literal["matched", "not_matched", "unknown"] | None = None
    calls: list[CallTrace] = Field([], description="into the video, where it was too long for one look")
    reasoning: str = ""
    refined: list[RankedVideo] | None = Field(None, description="the ranking after the query was refined")
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


class AskAnswer(BaseModel):
    """`abstained`: the agent does not know; `no_answer`: it ended without one; `partial`: the time limit ended it."""

    id: str
    status: Literal["answered", "abstained", "no_answer", "partial"]
    question: str
    film: str
    corpus: str
    answer: str | None = Field(description="a letter where there were options")
    calls: list[CallTrace]
    budget: float
    spent: float = Field(description="of the budget")
    usage: Usage
    model: str
    weight_version: int = Field(description="0 at the start, one more with each swap of the model's weights")


class Problem(BaseModel):
    code: str = Field(description="for programs")
    message: str = Field(description="for people: what is wrong, and the fix")


class ErrorAnswer(BaseModel):
    error: Problem


class Corpus(BaseModel):
    name: str
    videos: int
    index_version: str
    examples: list[str] = Field([], description="the first queries of the corpus's annotations, where it has any")


class Video(BaseModel):
    """`ready` videos can be searched; those before it are on their way; `failed` ones never came in."""

    video_id: str
    status: Literal["queued", "decoding", "embedding", "indexing", "ready", "failed"]
    progress: float = Field(description="share of the stages that are done, 0 to 1")
    duration: float | None = Field(None, description="of a ready video, in seconds; like the next two not in lists")
    first_picture_sec: float | None = Field(
        None, description="of a ready video: its first picture on the file's own clock; all times here count from it"
    )
    version: str | None = Field(None, description="of a ready video: another one for each other content, see `v`")
    error: Problem | None = Field(None, description="of a failed video")


class VideoPage(BaseModel):
    videos: list[Video] = Field(description="sorted by id, in the order of Unicode")
    next: str | None = Field(description="`after` of the next page; null on the last")


class VideoSource(BaseModel):
    """Where a video is; exactly one of the two."""

    model_config = example(path="2026/kitchen_03.mp4")

    path: str | None = Field(None, min_length=1, description="file below `serve.upload.path_root`, or from there")
    url: str | None = Field(None, min_length=1, description="public http(s) address, where `serve.upload.urls` is true")

    @model_validator(mode="after")
    def _is_one_place(self) -> VideoSource:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path or url")
        return self


class Health(BaseModel):
    status: Literal["ok", "starting"]
    detail: dict[str, Any] = Field({}, description="of each corpus")
    models: dict[str, int] = Field({}, description="of each model the number of its agents")


def moment_of(query: str, corpus: str, video_id: str, span: tuple[float, float], score: float) -> Moment:
    """Return a moment with its addresses. All of its link is behind the `#`, so that no server's log has the query."""
    (start, end), path = span, f"/v1/videos/{quote(video_id, safe='')}/thumbnail"
    middle = {"t": f"{(start + end) / 2:.2f}", "corpus": corpus}
    link = {"q": query, "corpus": corpus, "v": video_id, "t": f"{start:.2f}-{end:.2f}"}
    return Moment(
        video_id=video_id,
        start=start,
        end=end,
        score=score,
        thumbnail_url=f"{path}?{urlencode(middle)}",
        deep_link=f"/#{urlencode(link)}",
    )
