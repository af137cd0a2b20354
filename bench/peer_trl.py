"""The same GRPO step in TRL, the closest peer: colocated vLLM, one turn, no refinement (`bench push` is ours).

TRL knows no clips. An image costs it what a pair of frames costs, so a clip of 64 frames is 32 images with their time
stamps before them: the same patches and video tokens. Rewards are random, replies have their exact length. Run it where
TRL is installed, it is no dependency: `python -m bench.peer_trl --shape 2b --frames 64 --side 256`. It prints a line of
JSON for each variant of TRL's settings; the fastest one counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.learner import config_of
from bench.measure import device, line
from bench.toy.models import toy_processor
from bench.toy.tokenizer import policy_tokenizer, train_tokenizer, vocabulary_texts
from vsr1.search.prompts import SYSTEM_PROMPT

WARM_UP = 2  # steps that do not count
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# What does not fit says so, and the next one runs.
VARIANTS: dict[str, dict[str, Any]] = {
    "checkpointing, 16 rows, no correction": {"rows": 16, "gradient_checkpointing": True, "correction": False},
    "bfloat16, 4 rows, no correction": {"rows": 4, "dtype": "bfloat16", "correction": False},
    "2 rows, no correction": {"rows": 2, "correction": False},
    "checkpointing, 16 rows": {"rows": 16, "gradient_checkpointing": True},
    "bfloat16, 4 rows": {"rows": 4, "dtype": "bfloat16"},
}


def write_stock(shape: str, folder: Path, longest_edge: int) -> Any:
    """Write random weights of a shape as a stock Qwen3-VL with its processor; returns the processor."""
    from transformers import Qwen3VLForConditionalGeneration

    tokenizer = policy_tokenizer(train_tokenizer(vocabulary_texts(0, 200)))
    processor = toy_processor(tokenizer)
    processor.image_processor.size = {"shortest_edge": 32 * 32, "longest_edge": longest_edge}
    processor.chat_template = tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    with torch.device(device()):
        model = Qwen3VLForConditionalGeneration(config_of(shape, tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


def prompts(count: int, frames: int, side: int) -> list[dict[str, Any]]:
    """Return conversations about random clips, a pair of frames as one image."""
    rows = []
    for number in range(count):
        rng = np.random.default_rng(number)
        content: list[dict[str, Any]] = [{"type": "text", "text": 'Query: "a red circle"\nRetrieved video: '}]
        for pair in range(frames // 2):
            pixels = rng.integers(0, 255, (side, side, 3), np.uint8)
            content += [
                {"type": "text", "text": f"<{2 * pair + 0.5:.1f} seconds>"},
                {"type": "image", "image": Image.fromarray(pixels)},
            ]
        rows.append({"prompt": [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": content}]})
    return rows


def settings(options: argparse.Namespace, folder: Path, variant: dict[str, Any], length: int, tokenizer: Any) -> Any:
    """Return TRL's configuration of a variant (the same step as ours; see the module)."""
    from trl import GRPOConfig

    # Weights are random: a sampled image token would be taken for an image.
    barred = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>"])
    exact = {
        "ignore_eos": True,
        "min_tokens": options.words,
        "detokenize": False,
        "logit_bias": dict.fromkeys(barred, -100.0),
    }
    samples = options.prompts * options.group
    rows = min(variant["rows"], samples)
    on_gpu = device() == "cuda"
    return GRPOConfig(
        output_dir=str(folder / "out"),
        use_vllm=on_gpu,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=0.35,
        vllm_max_model_length=length,
        vllm_enable_sleep_mode=False,
        num_generations=options.group,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=samples // rows,
        steps_per_generation=samples // rows,
        max_completion_length=options.words,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        generation_kwargs=exact if on_gpu else None,
        num_iterations=1,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="none",
        epsilon=0.2,
        epsilon_high=0.28,
        vllm_importance_sampling_correction=variant.get("correction", True),
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=2.0,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        gradient_checkpointing=variant.get("gradient_checkpointing", False),
        shuffle_dataset=False,
        max_steps=WARM_UP + options.rounds,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def figures(options: argparse.Namespace, folder: Path, processor: Any, variant: dict[str, Any]) -> dict[str, Any]:
    """Train some steps and return medians of their seconds, and of the parts that TRL names itself."""
    from transformers import Qwen3VLForConditionalGeneration, TrainerCallback
    from trl import GRPOTrainer
    from trl.extras.profiling import ProfilingContext

    ends: list[float] = []
    parts: list[dict[str, float]] = [defaultdict(float)]

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Takes the time at the end of each optimiser step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device() == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
            parts.append(defaultdict(float))

    def noted(context: Any, seconds: float) -> None:
        parts[-1][context.name.rpartition(".")[2]] += seconds

    ProfilingContext._log_metrics = noted
    rows = prompts(options.prompts, options.frames, options.side) * (WARM_UP + options.rounds)
    example = processor.apply_chat_template(
        [rows[0]["prompt"]], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    length = len(example["input_ids"][0]) + options.words
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=getattr(torch, variant.get("dtype", "float32")), attn_implementation=options.attention
    )
    model.model.visual.requires_grad_(False)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [random.random() for _ in completions],
        args=settings(options, folder, variant, length, processor.tokenizer),
        train_dataset=_dataset(rows),
        processing_class=processor,
        callbacks=[Clock()],
    )
    if device() == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    taken = [after - before for before, after in pairwise(ends)][WARM_UP - 1 :]
    names = sorted({name for part in parts[WARM_UP:-1] for name in part})
    peak = torch.cuda.max_memory_allocated() / 2**30 if device() == "cuda" else 0.0
    return {
        "prompt_tokens": length - options.words,
        "step_s": median(taken),
        "steps_s": taken,
        "parts_s": {name: median(part.get(name, 0.0) for part in parts[WARM_UP:-1]) for name in names},
        "peak_gib": peak,
    }


def _dataset(rows: list[dict[str, Any]]) -> Any:
    """Return rows as a dataset that hands out their images as they are, without a file format in between."""
    from datasets import Dataset

    data = Dataset.from_dict({"number": list(range(len(rows)))})
    data.set_transform(lambda batch: {name: [rows[i][name] for i in batch["number"]] for name in rows[0]})
    return data


def one_engine(image_token: int) -> None:
    """Let all variants share the first one's engine (its start is not what is measured), and give it right prompts.

    TRL 1.16 hands vLLM prompts whose image tokens are expanded, and vLLM expands them again
    (https://github.com/huggingface/trl/issues/6294): here each image is one token before it gets there.
    """
    from trl.generation.vllm_generation import VLLMGeneration

    start, engines = VLLMGeneration._init_vllm, list[Any]()

    def shared(generation: Any) -> None:
        if not engines:
            start(generation)
            engines.append(generation.llm)
            engines[0].generate = partial(generate, engines[0].generate)
        generation.llm, generation._llm_weights_sleeping = engines[0], False

    def generate(stock: Any, requests: list[dict[str, Any]], **settings: Any) -> Any:
        for request in requests:
            ids = request["prompt_token_ids"]
            request["prompt_token_ids"] = [
                token for last, token in pairwise([None, *ids]) if not last == token == image_token
            ]
        return stock(requests, **settings)

    VLLMGeneration._init_vllm = shared


def main() -> None:
    """Run the variants that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=["toy", "2b"], default="toy")
    for name, value in {"frames": 16, "side": 64, "prompts": 4, "group": 8, "words": 96, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--attention", default="sdpa", help="TRL's attention, such as flash_attention_2.")
    parser.add_argument("--only", nargs="*", help="Variants, by name.")
    parser.add_argument("--limit", type=float, default=1e9, help="Seconds after which no variant begins.")
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processor = write_stock(options.shape, folder, 4 * options.side**2)
        if device() == "cuda":
            one_engine(processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
        for variant, changes in VARIANTS.items():
            if options.only and variant not in options.only:
                continue
            if time.perf_counter() - began > options.limit:
                print(json.dumps({"variant": variant, "skipped": True}), flush=True)
                continue
            try:
                result = figures(options, folder, processor, changes)
                print(line("peer_trl", {"variant": variant, **vars(options), **result}), flush=True)
            except torch.OutOfMemoryError as error:
                print(json.dumps({"variant": variant, "error": str(error)[:200]}), flush=True)
            gc.collect()
            if device() == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
