"""A Ray that `vsr1 serve` starts lets in nobody from outside this machine."""

import subprocess
import sys
from ast import literal_eval

STARTED = """
import sys
from pipelines.cli import app
assert "ray" not in sys.modules, "Ray reads the variable when it is imported"
from pipelines.stage.connection import connect, keep_ray_local
keep_ray_local(None)
import psutil, ray
from vsr1.config import Config
connect(Config())
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
at = {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
print("listening at", sorted(at))
ray.shutdown()
"""


def test_a_local_ray_listens_on_the_loopback_address_only() -> None:
    process = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    [at] = [
        line.removeprefix("listening at ") for line in process.stdout.splitlines() if line.startswith("listening at")
    ]
    assert set(literal_eval(at)) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"} and at != "[]"
