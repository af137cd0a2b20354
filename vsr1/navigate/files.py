"""Files of navigation: questions about films, records to learn from, and the files that others publish.

    navigate/SPLIT.questions.jsonl   a question a line, as `NavigateTask` has it
    navigate/records.jsonl           a reply a line, with what was said before it: texts and replies in turn; or, where
                                     the line is `whole`, all replies of an episode
    navigate/search_records.jsonl    the same of searches that navigate

CG-Bench annotations, and the caption and training files of LongVideo-R1, are read into the same (longvideo.md §2, §3).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vsr1.episode.moments import Span
from vsr1.episode.sample import SampleId
from vsr1.formats.atomic import write_lines
from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.plain import plain
from vsr1.navigate.prompts import AFTER, TURN_END
from vsr1.navigate.record import NavigateTask
from vsr1.navigate.tree import NARROWEST, WIDEST, Node

Text = Annotated[str, Field(min_length=1)]
MERGED_S = 5.0  # seconds between two clues that count as one
RowT = TypeVar("RowT", bound=BaseModel)


class NavigateFileError(ValueError):
    """A file of questions, captions or records that cannot be used; the message names it, the row and the fault."""


class Question(BaseModel):
    """A row of a file of questions."""

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid")
    question_id: Text
    film: Text
    seconds: float = Field(gt=0)
    question: Text
    answer: Text
    options: list[Text] = []
    clues: list[tuple[float, float]] = []
    scenes: list[float] = []

    @model_validator(mode="after")
    def _fits_together(self) -> Question:
        letters = [chr(ord("A") + place) for place in range(len(self.options))]
        if self.options and self.answer not in letters:
            raise ValueError(f"answer {self.answer!r} is none of the letters {', '.join(letters)} of its options")
        if any(start > end or start < 0 for start, end in self.clues):
            raise ValueError(f"clues {self.clues} must be [start, end] in seconds, start not after end")
        return self

    def task(self, sample: SampleId, budget: float) -> NavigateTask:
        """Return the task of a sample of the question."""
        return NavigateTask(id=sample, budget=budget, **self.model_dump())


class Record(BaseModel):
    """A reply to learn, and what was said before it: `history[0]` was shown, `history[1]` replied, and so on.

    With `whole` the replies in the history are learnt as well: one record is an episode.
    """

    model_config = ConfigDict(extra="forbid")
    question_id: Text
    history: list[Text] = Field(min_length=1)
    reply: Text
    whole: bool = False

    @model_validator(mode="after")
    def _ends_with_what_is_shown(self) -> Record:
        if len(self.history) % 2 == 0:
            raise ValueError("history must begin and end with what the agent is shown")
        return self


def questions_file(folder: DatasetFolder, split: str) -> Path:
    """Return where the questions of a split lie."""
    return folder.at("navigate", f"{split}.questions.jsonl")


def records_file(folder: DatasetFolder) -> Path:
    """Return where the records of Stage 1 lie."""
    return folder.at("navigate", "records.jsonl")


def search_records_file(folder: DatasetFolder) -> Path:
    """Return where the records of searches that navigate lie."""
    return folder.root / "navigate" / "search_records.jsonl"


def read_questions(path: Path) -> list[Question]:
    """Read a file of questions.

    Raises:
        FileNotFoundError: it is missing.
        NavigateFileError: a row that is no question, or two of one id.
    """
    questions = _rows(path, Question, _lines(path))
    if len({question.question_id for question in questions}) < len(questions):
        raise NavigateFileError(f"{path}: two questions have the same question_id")
    if not questions:
        raise NavigateFileError(f"{path} holds no question")
    return questions


def read_records(path: Path) -> list[Record]:
    """Read a file of records; errors as of `read_questions`."""
    return _rows(path, Record, _lines(path))


def write_rows(path: Path, rows: Iterable[BaseModel]) -> None:
    """Write questions or records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, [row.model_dump(mode="json") for row in rows])


def read_cgbench(path: Path) -> list[Question]:
    """Read CG-Bench annotations: a JSON list; clues at most 5 s apart are one (longvideo.md §2).

    Raises:
        NavigateFileError: a row without a field, or whose right answer is no letter of its choices.
    """
    questions = []
    for number, row in enumerate(_list(path)):
        try:
            values = {
                "question_id": str(row.get("qid", number)), "film": row["video_uid"], "seconds": row["duration"],
                "question": row["question"], "options": row["choices"], "answer": row["right_answer"],
                "clues": merged(row["clue_intervals"]),
            }  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NavigateFileError(f"{path} row {number}: not a CG-Bench annotation ({error!r})") from error
        questions += _rows(path, Question, [values], number)
    return questions


def merged(spans: Iterable[Iterable[float]], gap: float = MERGED_S) -> list[Span]:
    """Return spans in order, those at most `gap` seconds apart as one."""
    result: list[Span] = []
    for start, end in sorted((float(start), float(end)) for start, end in spans):
        if result and start - result[-1][1] <= gap:
            result[-1] = result[-1][0], max(end, result[-1][1])
        else:
            result.append((start, end))
    return result


def read_captions(path: Path) -> tuple[str, int, dict[Node, str]]:
    """Read the published captions of a film: its name, K, and the caption of each node.

    Three lists, of the nodes of each level in order; an older layout has a list with the whole film before them.

    Raises:
        NavigateFileError: lists that are no tree of this width.
    """
    row = _json(path)
    try:
        name, width, lists = str(row["video_name"]), int(row["width"]), list(row["captions"])
        texts = [[str(item["caption"]) for item in level] for level in lists]
    except (KeyError, TypeError, ValueError) as error:
        raise NavigateFileError(f"{path}: not a caption file ({error!r})") from error
    if len(texts) == 4 and len(texts[0]) == 1:
        del texts[0]
    sizes = [len(level) for level in texts]
    if not NARROWEST - 1 <= width <= WIDEST or sizes != [width, width**2, width**3]:
        raise NavigateFileError(f"{path}: {sizes} captions by level are no tree of width {width}")
    captions: dict[Node, str] = {}
    nodes: list[Node] = [()]
    for level in texts:
        nodes = [(*node, number) for node in nodes for number in range(1, width + 1)]
        captions |= zip(nodes, level, strict=True)
    return name, width, captions


def read_published_records(path: Path) -> list[Record]:
    """Read published training rows: system, history of (shown, replied), instruction, input, output.

    Raises:
        NavigateFileError: a row without one of them.
    """
    records = []
    for number, row in enumerate(_list(path)):
        try:
            shown = "\n".join(text for text in (row["instruction"], row.get("input", "")) if text)
            texts = [text for pair in row.get("history") or [] for text in pair] + [shown]
            markup = [_shown(text) if place % 2 == 0 else text for place, text in enumerate(texts)]
            markup[0] = f"<|im_start|>system\n{plain(row['system'])}{markup[0]}"
            values = {"question_id": str(number), "history": markup, "reply": row["output"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise NavigateFileError(f"{path} row {number}: not a training row ({error!r})") from error
        records += _rows(path, Record, [values], number)
    return records


def _shown(text: str) -> str:
    return f"{TURN_END}\n<|im_start|>user\n{plain(text)}{AFTER}"


def _rows(path: Path, kind: type[RowT], rows: Iterable[Any], first: int = 1) -> list[RowT]:
    result = []
    for number, row in enumerate(rows, start=first):
        try:
            result.append(kind.model_validate(row))
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise NavigateFileError(f"{path} row {number}: {faults}") from error
    return result


def _lines(path: Path) -> list[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; toy.create=true writes one for the toy world")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise NavigateFileError(f"{path} row {number}: not JSON ({error})") from error
    return rows


def _list(path: Path) -> list[Any]:
    rows = _json(path)
    if not isinstance(rows, list):
        raise NavigateFileError(f"{path}: a JSON list is needed, not {type(rows).__name__}")
    return rows


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NavigateFileError(f"{path}: not JSON ({error})") from error
