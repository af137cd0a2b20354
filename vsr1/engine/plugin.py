"""Entry point `vllm.general_plugins`: every vLLM process, engine processes included, learns the policy's model class."""

from vsr1 import compat

ENGINE_ARCHITECTURE = "VideoSearchPolicy"


def register() -> None:
    compat.prepare()
    from vllm import ModelRegistry

    if ENGINE_ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ENGINE_ARCHITECTURE, "vsr1.engine.model:VideoSearchPolicyForVllm")
