"""What a job gets of a folder, which nodes are unlike, and what is refused before a cluster is asked."""

import subprocess
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.machine.resources import MachineError
from pipelines.submit.nodes import View, check_cluster, faults, look
from pipelines.submit.upload import MIB, upload_of
from vsr1.config import load_config
from vsr1.stores import StorageError


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository in which each way of ignoring a file is used once."""
    root = tmp_path / "checkout"
    (root / "code").mkdir(parents=True)
    files = {
        "code/run.py": 10, "code/new.py": 20, ".gitignore": 0, ".rayignore": 0, "big.bin": 3 * MIB, "docs.txt": 40,
        "packed.tar": 2 * MIB, "gone.py": 5,
    }  # fmt: skip
    for name, size in files.items():
        (root / name).write_bytes(b"x" * size)
    (root / ".gitignore").write_text("*.bin\n")
    (root / ".rayignore").write_text("docs.txt\n")
    git(root, "init")
    (root / ".git/info/exclude").write_text("/packed.tar\n")
    git(root, "add", "code/run.py", "docs.txt", "gone.py")
    (root / "gone.py").unlink()
    (root / "code/run.py").chmod(0o755)
    return root


def names(upload) -> set[str]:
    return {path.as_posix() for path in upload.sizes}


def test_what_git_ignores_is_not_sent_whichever_file_says_so(folder: Path) -> None:
    upload = upload_of(folder)
    assert names(upload) == {"code/run.py", "code/new.py", ".gitignore", ".rayignore"}
    assert {path.as_posix(): size for path, size in upload.excluded.items()} == {"packed.tar": 2 * MIB}
    first, second = upload.lines()
    assert first == f"upload: 4 files, 0.0 MiB of {folder}"
    assert second.startswith("kept here: 1 files, 2.0 MiB") and second.endswith("the largest: packed.tar (2.0 MiB)")


def test_a_folder_without_history_has_ignore_files_too(folder: Path) -> None:
    (folder / ".git").rename(folder.parent / "history")
    assert names(upload_of(folder)) == {"code/run.py", "code/new.py", ".gitignore", ".rayignore", "packed.tar"}


def test_other_repositories_and_linked_folders_are_named_and_not_sent(folder: Path) -> None:
    git(folder, "init", "other")
    (folder / "other/file").write_text("x")
    (folder / "link").symlink_to(folder.parent)
    upload = upload_of(folder)
    assert upload.folders == (Path("link"), Path("other"))
    assert upload.lines()[-1] == "kept here: other repositories and linked folders: link, other"


def test_an_upload_too_large_names_the_largest_files(folder: Path) -> None:
    upload = upload_of(folder)
    upload.check(0.001)
    with pytest.raises(
        MachineError, match=r"0\.0 MiB, more than --upload-limit 1e-05; the largest files: code/new\.py"
    ):
        upload.check(0.00001)


def test_equal_files_make_equal_archives_that_keep_their_modes(folder: Path, tmp_path: Path) -> None:
    archives = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for archive in archives:
        upload_of(folder).pack(archive, {"submitted/0-a.yaml": b"seed: 1\n"})
        (folder / "code/run.py").touch()
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as archive:
        assert archive.read("submitted/0-a.yaml") == b"seed: 1\n"
        assert archive.getinfo("code/run.py").external_attr >> 16 & 0o777 == 0o755


def test_unlike_nodes_are_named_with_what_differs() -> None:
    first = View("10.0.0.1", {"python": "3.11.9", "torch": "2.13.0", "vllm": "0.32.0"})
    like = View("10.0.0.2", dict(first.versions))
    old = View("10.0.0.3", {"python": "3.11.9", "torch": "2.12.0", "vllm": "none"}, ("run_dir",))
    assert faults([first, like], {}) == []
    versions, storage = faults([first, like, old], {"run_dir": Path("/local/run")})
    assert versions == (
        "node 10.0.0.3 has torch 2.12.0, the job's node 2.13.0; vllm none, the job's node 0.32.0: "
        "install the same on every node, as from one image"
    )
    assert storage.startswith("node 10.0.0.3 does not see run_dir=/local/run: put it on storage that every node")


def test_a_node_tells_what_it_does_not_see_and_versions_without_the_kind_of_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.submit.nodes.SIGHT_LIMIT_S", 0.1)
    view = look("here", {"data.root": tmp_path, "model.policy": tmp_path / "no"})
    assert view.missing == ("model.policy",)
    assert view.versions["torch"] == "2.13.0", "not 2.13.0+cpu"


def test_a_node_looks_at_urls_and_is_named_where_it_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.submit.nodes.SIGHT_LIMIT_S", 0.1)
    (tmp_path / "data").mkdir()
    options = [
        f"data.root=file://{tmp_path}/data",
        f"run_dir=file://{tmp_path}/none",
        f"storage.cache={tmp_path}/cache",
    ]
    config = load_config(None, options)
    assert look("here", {"data.root": config.data.root, "run_dir": config.run_dir}).missing == ("run_dir",)
    [line] = faults([View("a", {}), View("b", {}, ("run_dir",))], {"run_dir": config.run_dir})
    assert f"does not see run_dir=file://{tmp_path}/none: " in line
    config = load_config(None, ["data.root=nosuch://films/data"])
    with pytest.raises(StorageError, match="node b: nosuch://films/data: no file system is called nosuch"):
        look("b", {"data.root": config.data.root})


def test_results_in_the_copy_of_a_job_are_refused() -> None:
    config = load_config(None, ["run_dir=/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_0/runs/run"])
    with pytest.raises(MachineError, match=r"run_dir=.* lies in the job's copy .*: give an absolute run_dir"):
        check_cluster(config, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no cluster is named: give --address http://HOST:8265"),
        (["--address", "head:6379"], "'head:6379' is not the address of a job server"),
        (["--address", "http://127.0.0.1:1"], "no job server answers at http://127.0.0.1:1 "),
        (["--address", "http://127.0.0.1:1", "--token-file", "no"], "token file no is missing or empty"),
        (["--upload-limit", "0.1"], "more than --upload-limit 0.1; the largest files: checkpoints/toy"),
        (["sft.epoch=1"], "unknown key 'sft.epoch'; the nearest known key is 'sft.epochs'"),
    ],
)
def test_what_is_wrong_here_is_refused_here(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # what the command sets is undone after the test
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    result = CliRunner().invoke(app, ["submit", "sft", *arguments])
    assert result.exit_code == 1 and message in result.stderr, result.output + result.stderr


def test_a_runtime_environment_is_a_mapping_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env.yaml").write_text("working_dir: /code\n")
    result = CliRunner().invoke(app, ["submit", "sft", "--runtime-env", str(tmp_path / "env.yaml")])
    assert result.exit_code == 1 and "a mapping is needed, as in `env_vars:" in result.stderr
