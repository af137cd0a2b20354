"""Operations of a step against those that torch counts, and what is logged of them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.toy.models import config_2b, toy_config
from bench.toy.tokenizer import policy_tokenizer, train_tokenizer, vocabulary_texts
from vsr1.model.forward import Row, run_rows, token_logprobs
from vsr1.model.policy import VideoSearchPolicy
from vsr1.model.vision import encode_clips
from vsr1.rl.flops import ModelFlops, learner_speed
from vsr1.rl.meter import Work, peak_flops, work_numbers

PROMPT, REPLIES = 50, [7, 11, 5]


@pytest.fixture(scope="module")
def tokenizer():
    return policy_tokenizer(train_tokenizer(vocabulary_texts(0, 200)))


def _products(counter: FlopCounterMode) -> float:
    """Operations of matrix products; attention is counted by torch without regard to what the mask leaves out."""
    whole = counter.get_flop_counts()["Global"]
    return float(sum(count for operator, count in whole.items() if "attention" not in str(operator)))


def test_the_formula_of_text_is_what_torch_counts(tokenizer) -> None:
    policy = VideoSearchPolicy(toy_config(tokenizer)).eval()
    flops = ModelFlops.of(policy.config)
    groups = [[Row([20] * PROMPT, [30] * length) for length in REPLIES]]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        token_logprobs(policy, run_rows(policy.model, groups, []), groups[0])
    own = flops.prompt(PROMPT, [(length, length) for length in REPLIES])
    pairs = PROMPT * (PROMPT + 1) / 2 + sum(length * (PROMPT + (length + 1) / 2) for length in REPLIES)
    assert own - flops.pair * pairs == _products(counter)
    text = policy.config.text_config
    assert flops.pair == 2 * 2 * text.num_hidden_layers * text.num_attention_heads * text.head_dim


def test_the_formula_of_vision_is_what_torch_counts(tokenizer) -> None:
    policy = VideoSearchPolicy(toy_config(tokenizer)).eval()
    flops, grid = ModelFlops.of(policy.config), (3, 4, 6)
    pixels = torch.zeros(3 * 4 * 6, 3 * 2 * 16 * 16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encode_clips(policy.model.visual, [pixels], [grid])
    assert flops.clip(grid) - flops.patch_pair * 3 * 24**2 == _products(counter)
    policy.model.visual.requires_grad_(False).merger.requires_grad_(True)
    policy.model.visual.deepstack_merger_list.requires_grad_(True)
    [features] = encode_clips(policy.model.visual, [pixels], [grid])
    with FlopCounterMode(display=False) as counter:
        (features.tokens.sum() + sum(level.sum() for level in features.deepstack)).backward()
    assert flops.clip(grid, is_trained=True) - flops.clip(grid) == _products(counter)


def test_a_model_of_two_billion_takes_six_operations_a_weight_and_token(tokenizer) -> None:
    """1.41 billion weights in the layers of the 2B shape."""
    flops = ModelFlops.of(config_2b(tokenizer))
    assert 3 * flops.token == pytest.approx(6 * 1.41e9, rel=0.01)


def test_what_is_logged_is_of_all_ranks_over_the_time_of_the_slowest() -> None:
    first = Work({"forward": 1.0, "backward": 2.0}, 3e12, 9e12, 1000, 2, 4.0)
    second = Work({"forward": 3.0, "backward": 1.0}, 1e12, 1e12, 600, 0, 5.0)
    assert work_numbers([first, second], 1e12) == {
        "seconds/learn/backward": 2.0,
        "seconds/learn/forward": 3.0,
        "learner/tflops": 1.0,
        "learner/tokens_per_second": 400.0,
        "learner/clips_encoded": 2.0,
        "learner/peak_gib": 5.0,
        "mfu": 0.5,
        "mfu_effective": 1.25,
    }
    assert "mfu" not in work_numbers([first], None)
    assert learner_speed(work_numbers([first], None)) == {"learner tokens/s": pytest.approx(1000 / 3)}
    assert learner_speed(work_numbers([first], 1e12)).keys() == {"learner tokens/s", "mfu", "mfu effective"}
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
