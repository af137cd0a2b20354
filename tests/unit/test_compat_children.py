"""A process that is spawned under `prepared_children` loads torchvision, as vLLM's engine does."""

import multiprocessing

from vsr1.compat import prepared_children


def _load() -> None:
    import torchvision  # noqa: F401


def test_a_spawned_process_loads_torchvision() -> None:
    with prepared_children():
        process = multiprocessing.get_context("spawn").Process(target=_load)
        process.start()
    process.join(120)
    assert process.exitcode == 0
