"""The toy base models' training: its pixels are the processor's, its captions are in order, its folders load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.toy import pretrain
from bench.toy.captions import caption
from bench.toy.models import toy_processor, write_random_models
from bench.toy.tokenizer import embedder_tokenizer, train_tokenizer, vocabulary_texts
from vsr1.model.checkpoint import load_policy
from vsr1.model.embedder import Embedder
from vsr1.model.processor import ClipProcessor
from vsr1.toy.world import COLOURS, make_corpus, sentences_about
from vsr1.video.clips import Clip


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> ClipProcessor:
    folder = tmp_path_factory.mktemp("processor")
    toy_processor(embedder_tokenizer(train_tokenizer(vocabulary_texts(0, 200)))).save_pretrained(folder)
    return ClipProcessor(folder)


def test_patches_are_those_of_the_video_processor(processor: ClipProcessor) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    wanted = processor.process(Clip.make("v", frames, np.arange(6) * 1.0)).pixels
    torch.testing.assert_close(pretrain.patches(torch.from_numpy(frames)), wanted, atol=1e-6, rtol=0)


def test_films_are_prepared_as_the_embedder_prepares_clips(tmp_path: Path) -> None:
    _, folder = write_random_models(tmp_path, train_tokenizer(vocabulary_texts(0, 200)))
    embedder = Embedder.load(folder)
    corpus = make_corpus("train", 4, 0)
    films = pretrain.render_all(corpus, embedder.processor, "cpu")
    clips = [Clip.make(str(i), film.frames.numpy(), pretrain._render(film.example)[1]) for i, film in enumerate(films)]
    with torch.no_grad():
        vectors = pretrain.clip_vectors(embedder, films)
    torch.testing.assert_close(vectors, torch.from_numpy(embedder.embed_clips(clips)), atol=1e-5, rtol=0)


def test_a_caption_names_the_queried_events_and_never_a_later_one_first() -> None:
    rng = np.random.default_rng(0)
    for example in make_corpus("train", 200, 0):
        words = [word.strip(",") for word in caption(example, rng).split()]
        told = [word for word in words if word in COLOURS]
        shown = [event.colour for event in example.film.events]
        events = iter(shown)
        assert all(colour in events for colour in told), (told, shown)
    pair = make_corpus("train", 2, 0)[0]
    only = replace(pair, film=replace(pair.film, events=pair.queried), first=0)
    texts = {caption(only, rng) for _ in range(200)}
    assert len(texts) > 40, "attributes are left out now and then, sentences differ"
    assert not any(" right after a" in text and "and right after" not in text for text in texts)


def test_sentences_about_a_pair_are_those_that_training_shows() -> None:
    sentences = sentences_about(make_corpus("train", 2, 0)[0].queried)
    assert len(sentences) == len(set(sentences)) == 45
    queries = {example.query for example in make_corpus("train", 200, 0)}
    assert queries <= {s for example in make_corpus("train", 200, 0) for s in sentences_about(example.queried)}


def test_both_folders_load_and_the_embedder_starts_from_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"CORPUS": 8, "HELD_OUT": 8, "BATCH": 4}.items():
        monkeypatch.setattr(pretrain, name, value)
    pretrain.pretrain(tmp_path, policy_steps=2, embedder_steps=1, corpora=2)
    policy, embedder = load_policy(tmp_path / "policy"), Embedder.load(tmp_path / "embedder")
    report = capsys.readouterr().out
    assert "policy step 2" in report and "embedder step 1" in report
    words = policy.model.language_model.embed_tokens.weight[: embedder.model.language_model.embed_tokens.num_embeddings]
    moved = (words - embedder.model.language_model.embed_tokens.weight).abs().max()
    assert 0 < moved < 0.01, "one step of the embedder away from the policy"
