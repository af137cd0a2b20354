"""Which weights a model's agents have."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Weights(BaseModel):
    """What Serve keeps as `user_config` of a model's deployment and gives to each replica, also to later ones."""

    model_config = ConfigDict(extra="forbid")

    checkpoint: Path
    version: int = 0
