"""The long films of a run, and what its tools have said of them: the dataset keeps both, and nobody is asked again."""

from __future__ import annotations

from functools import lru_cache

from actors.tools import films_of
from vsr1.config import Config
from vsr1.environments.registry import environment_of
from vsr1.episode.moments import Span
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.calls import ToolCall, ToolError, ToolResult, clip_node
from vsr1.navigate.files import questions_file, read_questions
from vsr1.navigate.plane import Member, ToolPlane
from vsr1.navigate.tree import ClipTree
from vsr1.settings.navigate import ToolName
from vsr1.storage import fetched
from vsr1.video.clips import META, Clip, ClipError, read_meta


class KeptFilms:
    """Reads the films of all splits of `data.root`, and the answers that runs over it have kept.

    Raises:
        NavigateFileError: a file of questions that cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._folder = config, DatasetFolder(config.data.root)
        self._splits = self._searched() if environment_of(config).has_corpus else self._asked_about()
        self._plane = lru_cache(self._plane_of_split)

    def _asked_about(self) -> dict[str, str]:
        """Return the split of each film that questions are about."""
        files = sorted((self._config.data.root / "navigate").glob("*.questions.jsonl"))
        splits = [file.name.split(".")[0] for file in files]
        return {one.film: split for split in splits for one in read_questions(questions_file(self._folder, split))}

    def _searched(self) -> dict[str, str]:
        """Return the split of each video that can be searched."""
        folders = {split: self._folder.clips(split) for split in self._config.data.splits}
        built = {split: clips for split, clips in folders.items() if fetched(clips / META).is_file()}
        return {video: split for split, clips in built.items() for video in read_meta(clips)}

    def said(self, call: ToolCall) -> str | None:
        """Return what a tool has said of a node, None where it is not kept.

        Raises:
            ClipError: the dataset has no such film.
        """
        result = self._plane(self._split(call.film)).from_disk(call)
        return None if result is None else result.text

    async def use(self, call: ToolCall) -> ToolResult:
        """Answer a call of an episode that is played again.

        Raises:
            ToolError: its answer is not kept.
        """
        return await self._plane(self._split(call.film)).use(call)

    def read(self, name: str) -> Clip:
        """Return the clip of a node, as `vsr1.navigate.calls.node_clip` names it."""
        return self._plane(self._split(clip_node(name)[0])).films.read(name)

    def span(self, name: str) -> Span:
        """Return the seconds of the film that such a clip shows."""
        film, node = clip_node(name)
        return self.tree(film).span(node)

    def tree(self, film: str) -> ClipTree:
        """Return the clip tree of a film; raise as `said`."""
        return self._plane(self._split(film)).films.tree(film)

    def _split(self, film: str) -> str:
        if film not in self._splits:
            raise ClipError(f"dataset {self._folder.root} holds no film {film!r}")
        return self._splits[film]

    def _plane_of_split(self, split: str) -> ToolPlane:
        navigate, nobody = self._config.navigate, Member(self._not_kept)
        pools: dict[ToolName, list[Member]] = {"caption": [nobody], "video_qa": [nobody]}
        cache = self._folder.root / "navigate" / "answers"
        films = films_of(self._config, split)
        return ToolPlane(films, pools, navigate.pools.deadline_s, cache, navigate.find_level)

    async def _not_kept(self, call: ToolCall) -> ToolResult:
        raise ToolError(
            f"{self._folder.root}/navigate/answers keeps no answer of {call.tool} at {call.node} of film {call.film!r}"
        )
