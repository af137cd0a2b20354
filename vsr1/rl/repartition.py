"""Optimiser states of another number of ranks, under ZeRO 1 and 2.

A rank has a flat part of each parameter group: its float32 weights and, of Adam, two moments of each. The parts of all
ranks in their order, without the padding that the last ones end with, are the group, and are cut anew. DeepSpeed itself
refuses such a state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

PARTITIONS = "single_partition_of_fp32_groups"


def load_repartitioned(optimizer: Any, folder: Path, saved: int) -> None:
    """Take this rank's part of what `saved` ranks wrote.

    Args:
        optimizer: DeepSpeed's, whose model has its weights already.
        folder: of DeepSpeed's files.
    """
    names = [f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(saved)]
    files = [path for name in names for path in folder.glob(name)]
    parts = [torch.load(path, "cpu", mmap=True, weights_only=False)["optimizer_state_dict"] for path in files]
    states: dict[int, dict[str, Any]] = {}
    for group, own in enumerate(optimizer.single_partition_of_fp32_groups):
        lengths = [len(part[PARTITIONS][group]) for part in parts]
        own.data.copy_(_own([part[PARTITIONS][group] for part in parts], lengths, len(own)))
        moments = [part["base_optimizer_state"]["state"][group] for part in parts]
        states[group] = {
            name: _own([of_rank[name] for of_rank in moments], lengths, len(own)) if value.dim() else value
            for name, value in moments[0].items()
        }
    groups = optimizer.optimizer.state_dict()["param_groups"]
    optimizer.optimizer.load_state_dict({"state": states, "param_groups": groups})


def _own(parts: list[torch.Tensor], lengths: list[int], size: int) -> torch.Tensor:
    """Return this rank's part of a group, padded with zeros to its size."""
    whole = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
    begin = torch.distributed.get_rank() * size
    own = torch.zeros(size, dtype=whole.dtype)
    own[: max(0, len(whole) - begin)] = whole[begin : begin + size]
    return own
