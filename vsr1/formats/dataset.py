"""Where each file of a prepared dataset lies.

The layout is that of the published prepared data (data-eval.md §1), so a released folder is used as it is. What this
project adds lies in files of its own: `raw_annotation/<split>.events.jsonl` of the toy corpus, and in `.vsr1/build/`
what a build needs to go on or to keep what is current. Where the dataset is at a URL, a file is brought to its place
when it is named here; of folders only their paths are returned.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsr1.storage import fetched

TRAIN = "train"  # the split of which a dataset has training records


@dataclass(frozen=True)
class DatasetFolder:
    root: Path

    def at(self, *names: str) -> Path:
        """Return the path of a file of the dataset."""
        return fetched(self.root.joinpath(*names))

    @property
    def build_state(self) -> Path:
        """Return the folder of what a build has done, see `pipelines/data/steps.py`."""
        return self.root / ".vsr1" / "build"

    def raw_videos(self, split: str) -> Path:
        """Return the folder of `<video id>.<extension>` source files."""
        return self.root / "raw_videos" / split

    def annotations(self, split: str) -> Path:
        return self.at("raw_annotation", f"{split}.jsonl")

    def events(self, split: str) -> Path:
        """Return the file of what is shown when, for the rule-based reasoning traces; toy corpus only."""
        return self.at("raw_annotation", f"{split}.events.jsonl")

    def corpus(self, split: str) -> Path:
        return self.at(split, "corpus_segments.jsonl")

    def queries(self, split: str) -> Path:
        return self.at(split, f"{split}_queries.jsonl")

    def clips(self, split: str) -> Path:
        """Return the folder of `<video id>.npy`, `meta.jsonl` and `failed_videos.jsonl`."""
        return self.root / split / "video_npy_with_meta"

    def clips_journal(self, split: str) -> Path:
        """Return the journal of what each clip was built from, see `pipelines/data/clips.py`."""
        return fetched(self.build_state / f"{split}.clips.rows.jsonl")

    def failed_videos(self, split: str) -> Path:
        """Return the file with a row for each video that gave no clip, empty if there is none."""
        return fetched(self.clips(split) / "failed_videos.jsonl")

    def lost_moments(self, split: str) -> Path:
        """Return the file with a row for each moment that its video is too short for, empty if there is none."""
        return fetched(self.clips(split) / "lost_moments.jsonl")

    def dropped_rows(self, split: str) -> Path:
        """Return the file of the annotation rows that were left out for their faults, empty if there is none."""
        return self.at("raw_annotation", f"{split}.dropped.jsonl")

    def added(self, split: str) -> Path:
        """Return the folder of the videos that a server added to the split, see `vsr1/retrieval/added.py`."""
        return self.root / "added" / split

    def query_embeddings(self, split: str) -> Path:
        return self.at(split, "query_embedding", f"query_embeddings.{split}.npy")

    def query_meta(self, split: str) -> Path:
        return self.at(split, "query_embedding", f"query_meta.{split}.jsonl")

    def video_embeddings(self, split: str) -> Path:
        return self.at(split, "video_embedding_1fps", "segment_embeds.npy")

    def docid2row(self, split: str) -> Path:
        return self.at(split, "video_embedding_1fps", "docid2row.json")

    def video_meta(self, split: str) -> Path:
        return self.at(split, "video_embedding_1fps", "meta.jsonl")

    def embedding_settings(self, split: str) -> Path:
        return self.at(split, "video_embedding_1fps", "config.json")

    def index(self, split: str) -> Path:
        return self.at(split, "index", "index.faiss")

    def id_map(self, split: str) -> Path:
        return self.at(split, "index", "id_map.json")

    def hard_negatives(self) -> Path:
        return self.at("train", "hard_negatives.json")

    def top1_pool(self) -> Path:
        return self.at("sft_data", "top1_pool.train.jsonl")

    def reasoning(self) -> Path:
        return self.at("sft_data", "top1_reasoning_grounding.train.jsonl")

    def reasoning_failures(self) -> Path:
        """Return the file with a row for each pair that got no reasoning, empty if there is none."""
        return self.at("sft_data", "reasoning_failures.train.jsonl")

    def reasoning_journal(self) -> Path:
        """Return the journal of answers of teacher models, in the order in which they were finished."""
        return self.build_state / "reasoning.jsonl"

    def sft_records(self) -> Path:
        return self.at("sft_data", "train_oneturn.json")

    def rewrites(self) -> Path:
        """Return the file of refinements in new words: of each training query id a text that finds its video better."""
        return self.at("sft_data", "rewrites.train.json")

    def grpo_records(self) -> Path:
        return self.at("grpo_data", "train.minimal_top1.jsonl")

    def grpo_stats(self) -> Path:
        return self.at("grpo_data", "stats.minimal_top1.json")
