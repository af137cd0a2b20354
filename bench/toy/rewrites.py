"""Texts that find toy videos better than their queries, for the baseline that refines in new words."""

from __future__ import annotations

from itertools import chain

import numpy as np

from vsr1.config import Config
from vsr1.formats.atomic import read_lines, write_json
from vsr1.formats.dataset import DatasetFolder
from vsr1.model.embedder import Embedder
from vsr1.rl.refined import load_vectors
from vsr1.toy.world import load_events, sentences_about

AT_ONCE = 16  # videos whose candidates are embedded in one call


def write_rewrites(config: Config) -> int:
    """Write for every training query the training sentence with which the frozen engine ranks its video best.

    Among sentences of the same rank the one with the highest score counts.

    Returns:
        how many texts there are.

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
        sentences = []
        for video in part:
            film, first = events[video]
            sentences.append(sentences_about((film[first], film[first + 1])))
        scores = embedder.embed_queries(list(chain.from_iterable(sentences))) @ vectors.matrix.numpy().T
        ends = np.cumsum([len(candidates) for candidates in sentences])[:-1]
        for video, candidates, scores_CV in zip(part, sentences, np.split(scores, ends), strict=True):
            target_C = scores_CV[:, vectors.rows[video]]
            ranks_C = (scores_CV > target_C[:, None]).sum(axis=1)
            texts[video] = candidates[int(np.lexsort((-target_C, ranks_C))[0])]
    rewrites = {query["qid"]: texts[query["pos_doc_id"]] for query in queries}
    write_json(folder.rewrites(), rewrites)
    return len(rewrites)
