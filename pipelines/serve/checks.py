"""Looked at before the service starts: every fault of the settings that shows without Ray, all at one time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.machine.nodes import Capacity, capacity
from pipelines.machine.placement import Plan, Role, clip_stores, pool_roles, retrieval_roles
from pipelines.serve.gateway.keys import read_keys
from vsr1.config import Config, ConfigError
from vsr1.environments.registry import environment_of
from vsr1.formats.dataset import DatasetFolder
from vsr1.navigate.files import questions_file
from vsr1.settings.parts import ActorResources
from vsr1.settings.serving import CorpusConfig
from vsr1.storage import fetched, fetched_folder, is_there, named
from vsr1.toy.long_corpus import films_file
from vsr1.video.clips import META
from vsr1.video.largest_clip import check_largest_clip

HANDS_ON = ActorResources(cpus=0.1, memory_gib=0)  # gateway and library, each


def named_corpora(folders: Sequence[str], split: str, others: dict[str, CorpusConfig]) -> dict[str, CorpusConfig]:
    """Return `others` and the corpora of `--corpus NAME=DIR`, or DIR, which is known by the name of its folder.

    Raises:
        ConfigError: two of one name.
    """
    corpora = dict(others)
    for entry in folders:
        name, _, place = ("", "", entry) if Path(entry).is_dir() else entry.rpartition("=")
        root = Path(place).expanduser()
        name = name or root.resolve().name
        if name in corpora:
            raise ConfigError(
                f"--corpus {entry}: {corpora[name].root} is corpus {name!r} already, and a search names one of them; "
                f"say --corpus OTHER={root}"
            )
        corpora[name] = CorpusConfig(root=root, split=split)
    return corpora


def serving_plan(config: Config, agents: bool, available: Capacity) -> Plan:
    """Return the actors of the service; without agents it only retrieves."""
    cluster, corpora = config.cluster, len(config.serve.corpora)
    shards, *services = retrieval_roles(config, corpora)
    roles = [Role("gateway, library", 2, HANDS_ON)]
    if environment_of(config).has_corpus:
        roles += [*services, shards]
    if environment_of(config).has_films:
        roles += pool_roles(config, corpora)
    if agents:
        models, least = len(config.served_models), config.serve.least_replicas
        roles.append(Role("agent", least, cluster.rollout, "serve.least_replicas", "cluster.rollout", models))
        roles.append(clip_stores(config, corpora, available))
    return Plan("the service", tuple(roles), available)


def check_served(config: Config, agents: bool = True) -> None:
    """See that what the settings name is there, and that there is room for the actors.

    Raises:
        ConfigError: names everything that is not.
        KeyFileError: the file of keys cannot be used.
        PlanError: the actors do not fit.
    """
    faults = list(_faults(config, agents))
    if faults:
        raise ConfigError("\n".join(faults))
    if config.serve.key_file:
        read_keys(config.serve.key_file)
    serving_plan(config, agents, capacity(config)).check()


def _faults(config: Config, agents: bool) -> Iterator[str]:
    settings, environment = config.serve, environment_of(config)
    if not agents and not environment.has_corpus:
        yield f"environment={config.environment} searches no corpus; leave it out"
    if not settings.corpora:
        yield "serve.corpora names no corpus; say --corpus DIR, or serve.corpora.NAME.root=DIR"
    models = {f"checkpoint of model {name!r}": folder for name, folder in config.served_models.items()}
    for what, folder in models.items() if agents else ():
        yield from _model_faults(what, folder, config.model.allow_bin)
        try:
            check_largest_clip(folder, config.data)
        except ConfigError as error:
            yield f"{what}: {error}"
    if environment.has_corpus:
        yield from _model_faults("model.embedder", config.model.embedder, False)
    for name, corpus in settings.corpora.items():
        if not is_there(corpus.root):
            yield f"corpus {name!r}: folder {named(corpus.root)} does not exist"
            continue
        if environment.has_corpus:
            yield from _corpus_faults(name, corpus, config.retrieval.shards, agents)
        elif not (questions := questions_file(DatasetFolder(corpus.root), corpus.split)).is_file():
            yield f"corpus {name!r}: {questions} is missing; a question is about a film that it names"
        if agents and environment.has_films and config.navigate.pools.captioner.kind == "toy":
            films = films_file(DatasetFolder(corpus.root), corpus.split)
            if not films.is_file():
                yield f"corpus {name!r}: the toy captioner knows {films} only; set navigate.pools.captioner.kind"
    root = settings.upload.path_root
    if root is not None and not root.is_dir():
        yield f"serve.upload.path_root={root} is no folder"


def _model_faults(what: str, folder: Path, allow_bin: bool) -> Iterator[str]:
    if not fetched_folder(folder).is_dir():
        yield f"{what}: folder {named(folder)} does not exist"
    elif not (folder / "config.json").is_file():
        yield f"{what}: {folder} has no config.json, so it is no checkpoint; a run keeps its own under checkpoints/"
    elif not any(folder.glob("*.safetensors")) and not (allow_bin and any(folder.glob("*.bin"))):
        yield f"{what}: {folder} has no safetensors weights"


def _corpus_faults(name: str, corpus: CorpusConfig, shards: int, clips: bool) -> Iterator[str]:
    folder, what = DatasetFolder(corpus.root), f"corpus {name!r}"
    needed = [folder.video_embeddings(corpus.split), folder.docid2row(corpus.split)]
    needed += [fetched(folder.clips(corpus.split) / META)] if clips else []
    if missing := [path for path in needed if not path.is_file()]:
        yield f"{what}: {missing[0]} is missing; build split {corpus.split!r} of the folder first"
        return
    videos = len(json.loads(needed[1].read_bytes()))
    if videos < max(2, shards):
        yield f"{what}: {videos} videos are too few for a search over retrieval.shards={shards} and two videos at least"
