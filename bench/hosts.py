"""Stage 2 on three hosts, submitted from a fourth: sums equal to those of one host, and what faults of hosts cost.

The hosts are network namespaces of this machine (`bench.hosts_net`): `head` has Ray's head, the driver and the learner,
`rollouts` the engines, `retrieval` the search; from `desk` the job is submitted.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.hosts_net import Host, Network
from bench.restarts import compared
from bench.soak import samples, trained, training
from pipelines.submit.server import ADDRESS, MODE, TOKEN_PATH
from vsr1.config import Config, dump_config
from vsr1.runs.events import EVENTS, read_events
from vsr1.runs.folder import TRAINING_LOG
from vsr1.settings.parts import PlacedResources

GCS_PORT, DASHBOARD_PORT, CPUS = 6379, 8265, 2
POOLS = {"learner": "head", "reward": "head", "rollout": "rollouts", "retrieval": "retrieval", "shard": "retrieval"}
START_S, RUN_S = 120.0, 900.0
CUT_S = 10.0  # that a link is cut
FAULT_STEPS = 4  # of the training with faults: after the first the link is cut, after the next two a host is killed
TOLD = ("kind", "role", "member", "workers", "reason", "node", "address", "samples", "seconds")  # of an event
NAMES = ("one", "three", "faults")
PAUSE_S = 0.2
QUIET = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}


class Cluster:
    """Ray on hosts of a network, each with a pool as label.

    Args:
        folder: short, for the files of each node's Ray.

    Attributes:
        env: of programs on any host: it has the token.
        head_env: file with the variables of a client, as the head has written it.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self._network, self._folder = network, folder
        self.desk = network.add("desk")
        self.hosts: dict[str, Host] = {}  # by pool, the newest
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        unset = ("RAY_ADDRESS", ADDRESS, "RAY_AUTH_TOKEN")
        self.env = {key: value for key, value in os.environ.items() if key not in unset} | {"PATH": path} | QUIET
        self.env |= {MODE: "token", TOKEN_PATH: str(folder / "head" / "token")}

    def start_head(self) -> None:
        """Start the head as a user does, and wait until it answers."""
        host = self.hosts["head"] = self._network.add("head")
        script, folder = Path(__file__).parents[1] / "cluster" / "local_head.sh", self._folder / "head"
        ports = ["--port", str(GCS_PORT), "--dashboard-port", str(DASHBOARD_PORT)]
        place = ["--temp-dir", str(folder), "--node-ip", host.address, "--labels", "pool=head"]
        self._start(host, "head", [str(script), *place, *ports, "--num-cpus", str(CPUS)])
        self.address = f"http://{host.address}:{DASHBOARD_PORT}"
        self.head_env = folder / "head.env"
        until(self.head_env.is_file, f"the head answers; see {self._folder / 'head.log'}", START_S)

    def join(self, pool: str) -> Host:
        """Let a new host join, and again whenever its Ray ends; does not wait for it."""
        host = self.hosts[pool] = self._network.add(pool)
        name = self._name(host)
        gcs = f"{self.hosts['head'].address}:{GCS_PORT}"
        options = ["--address", gcs, "--node-ip-address", host.address, "--labels", f"pool={pool}", "--block"]
        options += ["--temp-dir", str(self._folder / name), "--num-cpus", str(CPUS), "--disable-usage-stats"]
        again = ["sh", "-c", 'while :; do "$@"; sleep 1; done', "supervisor"]  # Ray ends where it was given up
        self._start(host, name, [*again, "ray", "start", *options, "--object-store-memory", str(2**28)])
        return host

    def has_joined(self, host: Host) -> bool:
        """Tell whether the Ray of a host has started."""
        return "Ray runtime started" in (self._folder / f"{self._name(host)}.log").read_text(errors="replace")

    def submit(self, config: Config) -> Callable[[], int | None]:
        """Submit Stage 2 from the desk; return what tells the exit code of that, None before its end."""
        log = config.run_dir / "logs"
        log.mkdir(parents=True, exist_ok=True)
        settings = log / "submitted.yaml"
        settings.write_text(dump_config(config), encoding="utf-8")
        command = [sys.executable, "-m", "pipelines", "submit", "grpo", "-c", str(settings), "--address", self.address]
        with (log / "console.log").open("ab") as output:
            return self.desk.start(command, output, self.env).poll

    def _name(self, host: Host) -> str:
        """Return a short name of the files of a host's Ray."""
        return f"{host.name[:4]}{host.address.rpartition('.')[2]}"

    def _start(self, host: Host, name: str, command: list[str]) -> None:
        with (self._folder / f"{name}.log").open("ab") as output:
            host.start(command, output, self.env)


@contextmanager
def cluster(*pools: str) -> Iterator[Cluster]:
    """Start a head and a host for each pool; the block begins when all are there."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing stays there
    with Network() as network, tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as folder:
        hosts = Cluster(network, Path(folder))
        hosts.start_head()
        for host in [hosts.join(pool) for pool in pools]:
            until(partial(hosts.has_joined, host), f"{host.name} joins", START_S)
        yield hosts


def bench_hosts(config: Config, with_faults: bool) -> dict[str, Any]:
    """Train on one host in `run_dir/one` and on three in `run_dir/three`, unless they are there, and compare them.

    Args:
        with_faults: train once more, in `run_dir/faults`, while a link is cut and two hosts are killed and replaced.
    """
    one, three, faults = (config.model_copy(update={"run_dir": config.run_dir / name}) for name in NAMES)
    figures: dict[str, Any] = {}
    if not _is_whole(one):
        began = time.monotonic()
        with training(one) as process:
            if process.wait(RUN_S):
                raise RuntimeError(f"the run on one host failed; see {one.run_dir / 'logs' / 'console.log'}")
        figures["one_s"] = time.monotonic() - began
    with cluster("rollouts", "retrieval") as hosts:
        if not _is_whole(three):
            began = time.monotonic()
            _train(hosts, spread(three))
            figures["three_s"] = time.monotonic() - began
        figures |= compared(one, three)
        if with_faults:
            more = config.grpo.model_copy(update={"steps": FAULT_STEPS})
            figures["faults"] = train_under_faults(hosts, spread(faults.model_copy(update={"grpo": more})))
    return figures


def _is_whole(config: Config) -> bool:
    return (config.run_dir / "checkpoints" / "grpo").is_dir()


def spread(config: Config) -> Config:
    """Return the settings with each role on the hosts of its pool."""
    changes: dict[str, PlacedResources] = {
        role: getattr(config.cluster, role).model_copy(update={"labels": {"pool": pool}})
        for role, pool in POOLS.items()
    }
    return config.model_copy(update={"cluster": config.cluster.model_copy(update=changes)})


def train_under_faults(hosts: Cluster, config: Config) -> dict[str, Any]:
    """Cut and restore the link of the engines' host, kill it, then kill that of the search; another joins each time.

    Returns:
        the events with their seconds, and how the samples were counted.
    """
    run, began = config.run_dir, time.time()
    acts: list[dict[str, Any]] = []

    def act(what: str) -> None:
        acts.append({"time": time.time(), "kind": what})

    def step(number: int) -> None:
        until(lambda: ended() is not None or last_step(run) >= number, f"step {number} of {run}", RUN_S)

    ended = hosts.submit(config)
    step(1)
    act("link of rollouts cut")
    hosts.hosts["rollouts"].cut()
    time.sleep(CUT_S)
    act("link restored")
    hosts.hosts["rollouts"].restore()
    for number, pool in enumerate(("rollouts", "retrieval"), start=2):
        step(number)
        act(f"host {pool} killed")
        hosts.hosts[pool].kill()
        act("another host joins")
        hosts.join(pool)
    until(lambda: ended() is not None, f"the end of {run}", RUN_S)
    events = timeline(began, acts + read_events(run / EVENTS))
    return {"exit_code": ended(), "seconds": time.time() - began, "events": events, **samples(config)}


def timeline(began: float, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events in the order of their time, with the seconds since `began`."""
    told = sorted(events, key=lambda event: event["time"])
    return [{"s": event["time"] - began} | {key: event[key] for key in TOLD if key in event} for event in told]


def _train(hosts: Cluster, config: Config) -> None:
    ended = hosts.submit(config)
    until(lambda: ended() is not None, f"the end of {config.run_dir}", RUN_S)
    if ended():
        raise RuntimeError(f"the run on three hosts failed; see {config.run_dir / 'logs' / 'console.log'}")


def last_step(run_dir: Path) -> int:
    """Return the last step that a run has trained, 0 before the first."""
    return max((one.step for one in trained(run_dir)), default=0) if (run_dir / TRAINING_LOG).is_file() else 0


def until(condition: Callable[[], bool], what: str, limit_s: float) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: it does not within the limit.
    """
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_s:g} s: {what}")
        time.sleep(PAUSE_S)
