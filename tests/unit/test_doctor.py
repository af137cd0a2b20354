"""The doctor reports every probe, gives a fix for what fails, and its own probes do the real thing."""

import io
import socket
import sys

import pytest
from rich.console import Console

from pipelines.machine import probes
from pipelines.machine.doctor import doctor, run_checks
from pipelines.machine.probes import PROBES, Check
from pipelines.machine.resources import MachineError
from pipelines.stage.workers import connect
from vsr1.config import Config, load_config


def passes(config: Config) -> list[Check]:
    return [Check("first", True, "all there", "never shown")]


def fails(config: Config) -> list[Check]:
    return [Check("second", False, "nothing", "install it")]


def printed(config: Config, chosen) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=160)
    return doctor(config, console, chosen), console.file.getvalue()


def test_every_probe_gives_its_checks_in_order():
    assert [check.name for check in run_checks(Config(), (passes, fails, passes))] == ["first", "second", "first"]


def test_exit_code_and_fix_only_where_something_fails():
    assert printed(Config(), (passes,))[0] == 0
    code, text = printed(Config(), (passes, fails))
    assert code == 1
    assert "install it" in text and "never shown" not in text


def test_versions_outside_the_supported_range_fail_with_the_range():
    versions = {"torch": "2.13.0+cpu", "vllm": "0.33.0", "ray": "2.60.0"}
    checks = {
        check.name: check
        for check in probes.package_versions(Config(), lambda names: next(iter(versions.get(n) for n in names)))
    }
    assert checks["torch"].ok and checks["ray"].ok
    assert not checks["vllm"].ok and ">=0.26,<0.33" in checks["vllm"].fix
    assert not checks["faiss"].ok and checks["faiss"].found == "not installed"


def test_this_environment_has_supported_versions():
    assert [check for check in probes.package_versions(Config()) if not check.ok] == []


def test_a_job_too_large_for_the_machine_fails_with_the_key():
    (check,) = probes.cpu_and_memory(load_config(None, ["cluster.rollout.memory_gib=100000"]))
    assert not check.ok and "cluster.rollout.memory_gib" in check.fix and "\n" not in check.fix


def test_a_cluster_that_is_not_there_is_a_failed_check():
    (check,) = probes.cpu_and_memory(load_config(None, ["cluster.address=127.0.0.1:1"]))
    assert not check.ok and "127.0.0.1:1" in check.found and "cluster.address" in check.fix


def test_a_gpu_is_asked_for_only_by_a_configuration_that_uses_it(monkeypatch):
    monkeypatch.setattr(probes.torch.cuda, "device_count", lambda: 0)
    assert probes.gpu(Config())[0].ok
    assert not probes.gpu(load_config(None, ["model.device=cuda"]))[0].ok


def test_shared_memory_smaller_than_the_object_store_fails():
    (check,) = probes.shared_memory(load_config(None, ["cluster.object_store_gib=1000000"]))
    assert not check.ok and "cluster.object_store_gib" in check.fix


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        free, busy = probes.ports(Config(), serve_port=port)
    assert free.ok
    assert not busy.ok and str(port) in busy.name and str(port) in busy.fix


@pytest.mark.parametrize("probe", [probes.python_version, probes.disk, probes.faiss_search, probes.video_codec])
def test_light_probes_pass_here(probe):
    assert [check.found for check in probe(Config()) if not check.ok] == []


def test_selftests_report_their_last_line_and_their_failures():
    run = probes.run_selftest
    assert run([sys.executable, "-c", "print('noise'); print('done')"]) == (True, "done")
    assert run([sys.executable, "-c", "raise ValueError('no wheel')"]) == (False, "ValueError: no wheel")
    assert run([sys.executable, "-c", "raise SystemExit(3)"]) == (False, "ended with code 3")


def test_a_selftest_past_its_limit_is_ended():
    ok, found = probes.run_selftest([sys.executable, "-c", "import time; time.sleep(60)"], limit_s=0.5)
    assert not ok and "0.5 s" in found


def test_each_default_probe_is_listed_once():
    assert len(set(PROBES)) == len(PROBES)


def test_a_machine_without_a_free_port_is_refused_before_ray_starts(monkeypatch):
    def taken(self, address):
        raise OSError(98, "Address already in use")

    monkeypatch.setattr("socket.socket.bind", taken)
    with pytest.raises(MachineError, match=r"a free port of .* cannot be opened"):
        connect(Config())
