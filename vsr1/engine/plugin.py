"""Entry point `vllm.general_plugins`: each vLLM process, engine processes included, learns the policy's model class."""

from importlib.metadata import entry_points

from vsr1 import compat

ENGINE_ARCHITECTURE = "VideoSearchPolicy"


def check_installed() -> None:
    """Raise a `RuntimeError` where vLLM's processes do not find `register`: a folder of sources has no entry points."""
    if not any(point.value.startswith(__name__) for point in entry_points(group="vllm.general_plugins")):
        raise RuntimeError(
            "vLLM finds the policy's model class by an entry point of the installed package, and vsr1 is not installed "
            "in this Python: `pip install --no-deps -e .` in its folder"
        )


def register() -> None:
    """Register the class itself, not its name: by name vLLM would inspect it in a bare process without `compat`."""
    compat.prepare()
    from vllm import ModelRegistry

    if ENGINE_ARCHITECTURE not in ModelRegistry.get_supported_archs():
        from vsr1.engine.model import VideoSearchPolicyForVllm

        ModelRegistry.register_model(ENGINE_ARCHITECTURE, VideoSearchPolicyForVllm)
