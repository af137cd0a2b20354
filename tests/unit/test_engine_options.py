"""How an engine is started on a GPU and on the CPU, where the settings leave it open."""

from __future__ import annotations

import pytest

from vsr1.engine.options import engine_options
from vsr1.settings.parts import EngineConfig


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_has_cuda_graphs_and_can_prepare_the_next_step_while_it_computes(device: str) -> None:
    options = engine_options(EngineConfig(), device)
    on_gpu = device == "cuda"
    assert (options["enforce_eager"], options["async_scheduling"], options["enable_chunked_prefill"]) == (
        not on_gpu,
        on_gpu,
        on_gpu,
    )


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_settings_decide_about_graphs_where_they_say_so(device: str, eager: bool) -> None:
    assert engine_options(EngineConfig(enforce_eager=eager), device)["enforce_eager"] is eager
