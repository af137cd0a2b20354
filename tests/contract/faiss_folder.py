"""A folder with a package `faiss` that is the installed one and says so, as a FAISS of the shards' own."""

from pathlib import Path

LOADED = """
import importlib.machinery, importlib.util, sys
places = [place for place in sys.path if place != {folder!r}]
spec = importlib.machinery.PathFinder.find_spec("faiss", places)
sys.modules["faiss"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.of_the_folder = True
"""
ON_GPUS = """
class GpuIndexFlatIP(module.IndexFlatIP):
    def __init__(self, resources, dim):
        super().__init__(dim)

module.GpuIndexFlatIP, module.StandardGpuResources = GpuIndexFlatIP, type("StandardGpuResources", (), {})
module.get_num_gpus, module.index_cpu_to_all_gpus = lambda: 1, lambda index: index
"""


def write_faiss(folder: Path, *, on_gpus: bool = False) -> Path:
    """Write the package and return its file; `on_gpus` gives it the names of a FAISS with GPU support."""
    file = folder / "faiss" / "__init__.py"
    file.parent.mkdir()
    file.write_text(LOADED.format(folder=str(folder)) + ON_GPUS * on_gpus)
    return file
