"""A saved checkpoint in stock transformers, in an environment that `make` has prepared."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import torch

from vsr1.compat import prepare_environment
from vsr1.model.checkpoint import Qwen3VLConfig, write_weights

REPOSITORY = Path(__file__).parents[2]
STOCK = """
import site, sys
site.addsitedir(sys.argv[1])  # as Python does at its start
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration
processor = AutoProcessor.from_pretrained(sys.argv[2])
model, info = Qwen3VLForConditionalGeneration.from_pretrained(sys.argv[2], output_loading_info=True)
print(type(processor).__name__, type(model).__name__)
others = {name for name in info["unexpected_keys"] if not name.startswith("refine_")}  # beside the heads
print(len(info["missing_keys"]), len(info["mismatched_keys"]), len(others), bool(processor.chat_template))
print(model.dtype, model.lm_head.weight.data_ptr() == model.model.language_model.embed_tokens.weight.data_ptr())
"""


def test_stock_transformers_reads_a_checkpoint(tmp_path: Path) -> None:
    prepare_environment(tmp_path)
    command = [sys.executable, "-c", STOCK, str(tmp_path), str(REPOSITORY / "checkpoints" / "toy" / "sft")]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    lines = result.stdout.splitlines()
    assert lines[-3:] == ["Qwen3VLProcessor Qwen3VLForConditionalGeneration", "0 0 0 True", "torch.float32 True"], (
        result.stderr
    )


def test_weights_can_be_read_by_whoever_reads_the_files_beside_them(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_weights(tmp_path, Qwen3VLConfig(), {"x": torch.zeros(2)})
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"config.json": 0o644, "model.safetensors": 0o644}
