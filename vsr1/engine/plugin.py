"""Entry point `vllm.general_plugins`: each vLLM process, engine processes included, learns the policy's model class."""

from vsr1 import compat

ENGINE_ARCHITECTURE = "VideoSearchPolicy"


def register() -> None:
    """Register the class itself, not its name: by name vLLM would inspect it in a bare process without `compat`."""
    compat.prepare()
    from vllm import ModelRegistry

    if ENGINE_ARCHITECTURE not in ModelRegistry.get_supported_archs():
        from vsr1.engine.model import VideoSearchPolicyForVllm

        ModelRegistry.register_model(ENGINE_ARCHITECTURE, VideoSearchPolicyForVllm)
