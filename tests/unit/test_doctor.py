"""The doctor reports every probe, gives a fix for what fails, and its own probes do the real thing."""

import io
import socket
import sys

import pytest
from rich.console import Console

from pipelines.machine import doctor
from pipelines.machine.doctor import PROBES, Probe
from pipelines.machine.resources import MachineError
from pipelines.stage.connection import connect
from vsr1.config import Config, load_config
from vsr1.versions import SUPPORTED


def passing(config: Config) -> str:
    return "all there"


def failing(config: Config) -> str:
    return doctor.need(False, "nothing", "install it")


def printed(probes: dict[str, Probe]) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=160)
    code = doctor.doctor(Config(), console, probes)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_the_exit_code_and_the_fix_of_what_fails() -> None:
    code, text = printed({"first": passing})
    assert (code, "all there" in text) == (0, True)
    code, text = printed({"first": passing, "second": failing, "third": passing})
    assert code == 1
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]
    assert rows == [
        ["first", "ok", "all there", ""],
        ["second", "fails", "nothing", "install it"],
        ["third", "ok", "all there", ""],
    ]


@pytest.mark.parametrize(
    ("part", "version", "fits"),
    [
        ("torch", "2.13.0+cpu", True), ("ray", "2.60.0", True), ("ray", "2.61.0", False), ("vllm", "0.33.0", False),
        ("vllm", "0.26.0", True), ("faiss", None, False),
    ],
)  # fmt: skip
def test_versions_outside_the_supported_range_fail_with_the_range(part: str, version: str | None, fits: bool) -> None:
    if fits:
        assert doctor.package(part, Config(), lambda name: version) == version
        return
    with pytest.raises(MachineError) as caught:
        doctor.package(part, Config(), lambda name: version)
    assert caught.value.state == (version or "not installed")
    assert f"{part} {SUPPORTED[part][1]} is supported" in caught.value.fix


@pytest.mark.parametrize("part", SUPPORTED)
def test_this_environment_has_supported_versions(part: str) -> None:
    assert doctor.package(part, Config())


def test_a_job_too_large_for_the_machine_fails_with_the_key() -> None:
    with pytest.raises(MachineError) as caught:
        doctor.cpu_and_memory(load_config(None, ["cluster.rollout.memory_gib=100000"]))
    assert caught.value.state.startswith("this machine: ")
    assert "cluster.rollout.memory_gib" in caught.value.fix and "\n" not in caught.value.fix


def test_a_cluster_that_is_not_there_is_a_failed_check() -> None:
    with pytest.raises(MachineError) as caught:
        doctor.cpu_and_memory(load_config(None, ["cluster.address=127.0.0.1:1"]))
    assert "127.0.0.1:1" in caught.value.state and "start the cluster" in caught.value.fix


def test_a_gpu_is_asked_for_only_by_a_configuration_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: 0)
    assert doctor.gpu(Config()).startswith("none that torch ")
    with pytest.raises(MachineError, match=r"model\.device=cpu"):
        doctor.gpu(load_config(None, ["model.device=cuda"]))


def test_shared_memory_smaller_than_the_object_store_fails() -> None:
    with pytest.raises(MachineError, match=r"lower cluster\.object_store_gib=1e\+06"):
        doctor.shared_memory(load_config(None, ["cluster.object_store_gib=1000000"]))


def test_a_port_in_use_is_named() -> None:
    assert doctor.port(0, Config()) == "free"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = listener.getsockname()[1]
        with pytest.raises(MachineError, match=rf"port {number} of .*ss -ltnp 'sport = :{number}'"):
            doctor.port(number, Config())


@pytest.mark.parametrize("probe", [doctor.python_version, doctor.disk, doctor.faiss_search, doctor.video_codec])
def test_light_probes_pass_here(probe: Probe) -> None:
    assert probe(Config())


def test_commands_report_their_last_line_and_their_failures() -> None:
    def run(script: str, limit_s: float = 60) -> str:
        return doctor.run_command([sys.executable, "-c", script], "the fix", limit_s)

    assert run("print('noise'); print('done')") == "done"
    for script, state in {
        "raise ValueError('no wheel')": "ValueError: no wheel",
        "raise SystemExit(3)": "ended with code 3",
    }.items():
        with pytest.raises(MachineError) as caught:
            run(script)
        assert (caught.value.state, caught.value.fix) == (state, "the fix")
    with pytest.raises(MachineError, match=r"no answer within 0\.5 s"):
        run("import time; time.sleep(60)", limit_s=0.5)


def test_the_report_covers_what_can_go_wrong() -> None:
    assert list(PROBES) == [
        "Python", *SUPPORTED, "CPU and memory", "shared memory", "GPU", "disk", "a free port", "port 8000",
        "FAISS search", "H.264", "DeepSpeed step", "Ray start", "vLLM import",
    ]  # fmt: skip


def test_a_machine_without_a_free_port_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(self: socket.socket, address: object) -> None:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("socket.socket.bind", taken)
    with pytest.raises(MachineError, match=r"a free port of .* cannot be opened"):
        connect(Config())


def test_errors_of_the_machine_survive_the_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(MachineError("a full disk", "free some space")))
    assert (error.state, error.fix, str(error)) == ("a full disk", "free some space", "a full disk: free some space")
