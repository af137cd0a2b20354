"""Small real runs of the heavy parts, each in a process of its own.

`python -m pipelines.machine.selftest ray|deepspeed|vllm`; `pipelines.machine.doctor` starts them with a time limit. A
process that ends with code 0 has done the real thing and printed one line on what it did; anything else is a failure,
with its traceback on stderr.
"""

from __future__ import annotations

import argparse
import os


def ray_starts() -> str:
    """Start a local Ray, run one task and stop it; `local` never joins a Ray that is already running here."""
    import ray

    ray.init(address="local", num_cpus=1, object_store_memory=100 * 1024**2, include_dashboard=False)
    try:
        process = ray.get(ray.remote(lambda: os.getpid()).remote(), timeout=60)
    finally:
        ray.shutdown()
    if process == os.getpid():
        raise RuntimeError("the Ray task ran in the driver's process")
    return f"Ray {ray.__version__} ran a task"


def deepspeed_steps() -> str:
    """Take one ZeRO 1 optimiser step of a linear layer in one process, on the CPU unless there is a GPU."""
    import deepspeed
    import torch

    from vsr1 import compat

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    compat.skip_operator_builds()
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    layer = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    settings = {"zero_optimization": {"stage": 1}, "zero_force_ds_cpu_optimizer": False}
    settings["train_micro_batch_size_per_gpu"] = 2
    engine, *_ = deepspeed.initialize(model=layer, optimizer=optimizer, config=settings)
    before = layer.weight.detach().clone()
    engine.backward(engine(torch.ones(2, 4, device=engine.device)).mean())
    engine.step()
    if torch.equal(before, layer.weight.detach()):
        raise RuntimeError("DeepSpeed's optimiser step did not change the weights")
    return f"DeepSpeed {deepspeed.__version__} took a ZeRO 1 step on {engine.device}"


def vllm_imports() -> str:
    """Import vLLM as its own processes do, with the compatibility shim, and register the policy's model class."""
    from vsr1.engine.plugin import register

    register()
    return "vLLM imported and knows the policy's model class"


SELFTESTS = {"ray": ray_starts, "deepspeed": deepspeed_steps, "vllm": vllm_imports}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipelines.machine.selftest")
    parser.add_argument("part", choices=SELFTESTS)
    # The last line of stdout is the result: libraries print above it.
    print(SELFTESTS[parser.parse_args().part](), flush=True)
