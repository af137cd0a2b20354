"""The memory that is reckoned is within 10 % of what the roles took on an H100."""

import json
from pathlib import Path

import pytest

from vsr1.footprint import (
    ModelShape,
    Pass,
    engine_memory,
    index_gib,
    kv_token_bytes,
    learner_memory,
    retrieval_memory,
    shard_memory,
    video_tokens,
)

TOY = Path(__file__).parents[2] / "checkpoints/toy"
QWEN_2B = ModelShape(28, 2048, 6144, 2048, 1024, 151_936, True, 24, 1024, 4096, 4096, 4, 1536, 2048)
PROMPT, REPLY = 2411, 102  # tokens of a clip of 64 frames at 256 pixels with its query; of a reply with its latents
WORDS = 96
ROWS = [32 * PROMPT, 32 * REPLY]
SHARED = 4 * PROMPT + 32 * REPLY
CLIPS = 32 * video_tokens(64, 256 * 256)


@pytest.mark.parametrize(
    ("largest", "measured"),  # docs/performance.md, "The learner": GiB on an H100
    [
        (Pass(SHARED, 32 * WORDS), 51),  # prompts shared
        (Pass(8 * PROMPT + 64 * REPLY, 64 * WORDS, is_alone=False), 74),  # 16 prompts in two passes
        (Pass(4 * 6400 + 32 * REPLY, 32 * WORDS, recomputed=4), 71),  # 448 pixels
        (Pass(sum(ROWS) // 3, 32 * WORDS // 3, is_alone=False), 76),  # unshared, three passes
        (Pass(sum(ROWS) // 2, 32 * WORDS // 2, recomputed=10, is_alone=False), 77),  # unshared, two passes
        (Pass(sum(ROWS), 32 * WORDS, recomputed=28), 54),  # unshared, one pass
        (Pass(sum(ROWS), 32 * WORDS, CLIPS, recomputed=28, rolls=True), 68),  # Stage 1, one pass
        (Pass(sum(ROWS) // 3, 32 * WORDS // 3, CLIPS // 3, recomputed=2, rolls=True, is_alone=False), 77),
    ],
)
def test_the_learner_takes_what_is_reckoned(largest: Pass, measured: float) -> None:
    parts = learner_memory(QWEN_2B, QWEN_2B, largest)
    reckoned = sum(parts.values()) - parts["buffers"]  # one process, without DeepSpeed
    print(f"{reckoned:.1f} {measured} {reckoned / measured - 1:+.1%}")
    assert reckoned == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("ranks", "reply", "measured"), [(1, 96, 45.6), (2, 104, 36.2)])
def test_ranks_of_deepspeed_take_what_is_reckoned(ranks: int, reply: int, measured: float) -> None:
    """Passes of two prompts of four, 8,192 tokens at most."""
    largest = Pass(2 * (PROMPT + 8 * reply), 16 * WORDS, is_alone=False)
    assert sum(learner_memory(QWEN_2B, QWEN_2B, largest, ranks=ranks).values()) == pytest.approx(measured, rel=0.02)


def test_engine_embedder_and_shard_take_what_is_reckoned() -> None:
    """What `nvidia-smi` says of their processes."""
    assert sum(engine_memory(QWEN_2B, 0.3, 79.2, kv_gib=12).values()) == pytest.approx(17.4, rel=0.02)
    assert sum(engine_memory(QWEN_2B, 0.25, 79.2, kv_gib=None).values()) == pytest.approx(21.2, rel=0.02)
    assert sum(retrieval_memory(QWEN_2B).values()) == pytest.approx(4.5, rel=0.02)
    assert sum(shard_memory(1_000_000, 2048, 1).values()) == pytest.approx(9.7, rel=0.02)


def test_ranks_share_what_the_zero_stage_says() -> None:
    largest = Pass(1, 1, is_alone=False)
    whole = learner_memory(QWEN_2B, QWEN_2B, largest)
    of_8 = {stage: learner_memory(QWEN_2B, QWEN_2B, largest, ranks=8, zero_stage=stage) for stage in (1, 2, 3)}
    for name, stages in {"optimiser": (1, 2, 3), "gradients": (2, 3), "weights": (3,)}.items():
        for stage, parts in of_8.items():
            assert parts[name] == pytest.approx(whole[name] / (8 if stage in stages else 1)), (name, stage)
    assert of_8[3]["embedder"] == whole["embedder"] and whole["optimiser"] == 6 * whole["gradients"]


def test_the_shape_of_2b_has_its_parameters_and_keys() -> None:
    assert QWEN_2B.parameters == pytest.approx(2.13e9, rel=0.01)
    assert kv_token_bytes(QWEN_2B) == 114_688
    assert 2 * QWEN_2B.layer_numbers == 61_440


@pytest.mark.parametrize("name", ["policy", "embedder"])
def test_parameters_of_a_real_checkpoint(name: str) -> None:
    shape, file = ModelShape.read(TOY / name), TOY / name / "model.safetensors"
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    sizes = [value["data_offsets"] for key, value in header.items() if key != "__metadata__"]
    real = sum(end - begin for begin, end in sizes) / (2 if "BF16" in json.dumps(header) else 4)
    assert shape.parameters == pytest.approx(real, rel=0.05)


def test_an_engine_takes_its_share_and_the_cache_what_is_left_of_it() -> None:
    parts = engine_memory(QWEN_2B, 0.6, 80, kv_gib=None)
    assert parts["weights"] == pytest.approx(3.97, abs=0.05)
    assert parts["weights"] + parts["key-value cache"] == pytest.approx(48)
    assert engine_memory(QWEN_2B, 0.6, 80, kv_gib=4)["key-value cache"] == 4
    assert retrieval_memory(QWEN_2B)["weights"] == pytest.approx(parts["weights"])


def test_index_and_clips() -> None:
    assert index_gib(10_000_000, 2048) == pytest.approx(76.3, abs=0.1)
    assert video_tokens(64, 256 * 256) == 2048
    assert video_tokens(63, 448 * 448) == 32 * 196
