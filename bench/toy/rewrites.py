"""Texts that find toy videos better than their queries, for the baseline that refines in new words."""

from __future__ import annotations

from itertools import chain

import numpy as np

from vsr1.config import Config
from vsr1.formats.atomic import read_lines, write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.embedder import Embedder
from vsr1.rl.example_loss import load_vectors
from vsr1.toy.world import load_events, sentences_about

AT_ONCE = 16  # videos whose candidates are embedded in one call


def write_rewrites(config: Config) -> int:
    """Of every training query the training sentence that the frozen engine ranks its video best with.

    Among sentences of the same rank the one with the highest score counts. Returns how many there are.

    Raises:
        FileNotFoundError: the toy dataset is not built.
    """
    folder = DatasetFolder(config.data.root)
    events = load_events(folder.events("train"))
    vectors = load_vectors(folder, "train")
    embedder = Embedder.load(config.model.embedder, device=config.model.device, dtype=config.model.dtype)
    queries = read_lines(folder.query_meta("train"))
    videos = list(dict.fromkeys(query["pos_doc_id"] for query in queries))
    texts = {}  # by video: its queries are about one moment
    for start in range(0, len(videos), AT_ONCE):
        part = videos[start : start + AT_ONCE]
        shown = [events[video] for video in part]
        sentences = [sentences_about((films[first], films[first + 1])) for films, first in shown]
        scores = embedder.embed_queries(list(chain.from_iterable(sentences))) @ vectors.matrix.numpy().T
        ends = np.cumsum([len(candidates) for candidates in sentences])[:-1]
        for video, candidates, own in zip(part, sentences, np.split(scores, ends), strict=True):
            right = own[:, vectors.rows[video]]
            ranks = (own > right[:, None]).sum(axis=1)
            texts[video] = candidates[int(np.lexsort((-right, ranks))[0])]
    rewrites = {query["qid"]: texts[query["pos_doc_id"]] for query in queries}
    write_json(folder.rewrites(), rewrites)
    return len(rewrites)
