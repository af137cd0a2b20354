"""What Stage 1 trains on: a row a record, the order of the rows, and the example that a row becomes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsr1.formats.dataset import DatasetFolder
from vsr1.formats.plain import encode_plain, plain
from vsr1.navigate.files import read_records
from vsr1.rl.batch import Example, RetrievalTarget
from vsr1.search.prompts import turn_prompt, with_rewrite
from vsr1.search.targets import negatives_of
from vsr1.video.clips import Clip

if TYPE_CHECKING:  # slow to import, and all of Ray Train's processes import this module
    from vsr1.model.processor import ClipProcessor


def record_rows(folder: DatasetFolder, *, with_rewrites: bool) -> list[dict[str, Any]]:
    """Return of each record the query, the video shown, the reply, the right video and the nearest wrong ones.

    Args:
        with_rewrites: replies that reject their video give the query in new words.

    Raises:
        FileNotFoundError: a file of the dataset is missing.
    """
    if not folder.sft_records().is_file():
        raise FileNotFoundError(f"{folder.sft_records()} is missing; build the dataset first with `vsr1 data build`")
    if with_rewrites and not folder.rewrites().is_file():
        raise FileNotFoundError(
            f"{folder.rewrites()} is missing: agent.refinement=text learns from one text a query id; for the toy "
            "corpus `python -m bench toy rewrites` writes them"
        )
    records, nearest = (json.loads(path.read_text("utf-8")) for path in (folder.sft_records(), folder.hard_negatives()))
    rewrites = json.loads(folder.rewrites().read_text("utf-8")) if with_rewrites else {}
    rows = []
    for record in records:
        meta, reply = record["meta"], record["messages"][-1]["content"]
        shown, right = meta["video_id"], meta["query_pos_video_id"]
        if with_rewrites and shown != right:
            reply = with_rewrite(reply, rewrites[str(record["qid"])])
        rows.append(
            {
                "query": record["query"],
                "video_id": shown,
                "reply": reply,
                "positive": right,
                "negatives": nearest.get(str(record["qid"]), []),
            }
        )
    return rows


def spoken_rows(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of navigation; `query` is what rows of one question share. Raise as its reader."""
    records = read_records(path)
    rows = [{"query": record.question_id, "history": record.history, "reply": record.reply} for record in records]
    if not any(record.whole for record in records):  # rows as they always were: a run may go on with them
        return rows
    return [row | {"whole": record.whole} for row, record in zip(rows, records, strict=True)]


def held_out(rows: list[dict[str, Any]], count: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows that are trained on, in their order, and `count` others; the seed chooses them.

    Rows of one query stay together: what is evaluated is new to the policy. A query may be cut in two to have `count`.

    Raises:
        ValueError: there are not as many.
    """
    if count >= len(rows):
        raise ValueError(f"sft.val_records={count} leaves none of {len(rows)} records to train on; lower it")
    queries = sorted({row["query"] for row in rows})
    random.Random(f"evaluated {seed}").shuffle(queries)
    place = {query: number for number, query in enumerate(queries)}
    evaluated = sorted(range(len(rows)), key=lambda index: place[rows[index]["query"]])[:count]
    chosen = set(evaluated)
    return [row for index, row in enumerate(rows) if index not in chosen], [rows[index] for index in evaluated]


def rows_in_order(rows: list[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows without end, each epoch in an order of its own: a function of the seed alone."""
    order = random.Random(seed)
    while True:
        yield from order.sample(rows, len(rows))


def rows_of_rank(
    ordered: Iterable[dict[str, Any]], rank: int, ranks: int, per_rank: int, done: int
) -> Iterator[dict[str, Any]]:
    """Yield a rank's rows after `done` steps: a step takes `per_rank` rows for each rank, one rank after another."""
    ordered = islice(ordered, done * ranks * per_rank, None)
    while step := list(islice(ordered, ranks * per_rank)):
        yield from step[rank * per_rank : (rank + 1) * per_rank]


def record_example(row: dict[str, Any], clip: Clip, processor: ClipProcessor, system: str, negatives: int) -> Example:
    """Return the example of a row, whose clip has been read; a reply that accepts its video has no target."""
    query, right, shown = row["query"], row["positive"], row["video_id"]
    wrong = negatives_of(right, shown, row["negatives"][:negatives])
    return Example(
        prompt_ids=processor.prompt_ids(turn_prompt(query, system), clip),
        response_ids=encode_plain(
            partial(processor.tokenizer.encode, add_special_tokens=False), plain(row["reply"], is_reply=True)
        ),
        clips=(clip.reference,),
        target=RetrievalTarget(query, right, wrong) if shown != right and wrong else None,
    )
