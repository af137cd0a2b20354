"""`vsr1 swap`: new weights for a served model, through what Serve gives to every replica, also to later ones."""

from __future__ import annotations

from pathlib import Path

import ray

from pipelines.serve.agents.weights import Weights
from pipelines.serve.deploy import APPLICATION
from pipelines.serve.running import AGENT, ServiceError, declare, declared
from vsr1.config import Config
from vsr1.model.replacement import replacing_files
from vsr1.storage import cache_at, place_of


def swap(name: str, checkpoint: Path, address: str) -> None:
    """Join the Ray at `address` and call `swap_weights`.

    Raises:
        ServiceError: no Ray is there; else as `swap_weights`.
    """
    try:
        ray.init(address=address, logging_level="warning", log_to_driver=False)
    except ConnectionError as error:
        raise ServiceError(f"no Ray answers at {address}: {error}; `vsr1 serve` prints the --address") from error
    swap_weights(name, checkpoint)


def swap_weights(name: str, checkpoint: Path) -> int:
    """Load a checkpoint into every agent of a model; return the new weight version when all have it.

    Each agent first finishes its searches, and those that come meanwhile wait. Make one swap at a time.

    Raises:
        ServiceError: the application or the model is not served, or an agent does not come up with the new weights.
        CheckpointError: the checkpoint does not fit what runs, which goes on as it is.
    """
    application = declared().get(APPLICATION)
    if application is None:
        raise ServiceError(f"Ray Serve runs no application {APPLICATION!r} there; start `vsr1 serve`")
    config = Config.model_validate(application["args"])
    served = config.served_models
    if name not in served:
        raise ServiceError(f"model {name!r} is not served; there are {', '.join(served)}")
    deployments = {one["name"]: one for one in application.get("deployments") or []}
    deployment = deployments.setdefault(AGENT + name, {"name": AGENT + name})
    now = Weights.model_validate(deployment.get("user_config") or {"checkpoint": served[name]})
    with cache_at(config.storage.cache):
        checkpoint = place_of(checkpoint) or checkpoint.absolute()
    replacing_files(checkpoint, now.checkpoint)
    new = Weights(checkpoint=checkpoint, version=now.version + 1)
    deployment["user_config"] = new.model_dump(mode="json")
    declare(application | {"deployments": list(deployments.values())})
    return new.version
