"""What a job gets of this folder: the files that git tracks or would add, in one archive of a limited size.

What git ignores stays here, whichever file says so: `.gitignore`, `.git/info/exclude` or the user's own list; Ray
reads `.gitignore` alone. What `.rayignore` names stays here too. Equal files make equal archives, which Ray sends once.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from pipelines.machine.resources import MachineError

MIB = 2**20
LARGEST = 5  # files that a refusal names
EXCLUDES = ".gitignore, .git/info/exclude or .rayignore"


@dataclass(frozen=True)
class Upload:
    """Files of a folder, by their path in it.

    Attributes:
        sizes: bytes of each file that a job gets.
        excluded: bytes of each that stays here although `.gitignore` does not name it: Ray alone would send it.
        folders: other repositories below the folder, and links to folders: none of their files is sent.
    """

    root: Path
    sizes: Mapping[Path, int]
    excluded: Mapping[Path, int]
    folders: tuple[Path, ...] = ()

    def check(self, limit_mib: float) -> None:
        """Compare the size with a limit.

        Raises:
            MachineError: it is above the limit; the largest files are named.
        """
        total = sum(self.sizes.values())
        if total > limit_mib * MIB:
            raise MachineError(
                f"the upload of {self.root} has {total / MIB:.1f} MiB, more than --upload-limit {limit_mib:g}; "
                f"the largest files: {_largest(self.sizes)}",
                f"name what the job does not need in {EXCLUDES}, or raise --upload-limit",
            )

    def lines(self) -> list[str]:
        """Return what is sent, and what is not."""
        lines = [f"upload: {len(self.sizes)} files, {sum(self.sizes.values()) / MIB:.1f} MiB of {self.root}"]
        if self.excluded:
            size = sum(self.excluded.values()) / MIB
            lines.append(
                f"kept here: {len(self.excluded)} files, {size:.1f} MiB, which git ignores and .gitignore does not "
                f"name; the largest: {_largest(self.excluded)}"
            )
        if self.folders:
            lines.append(f"kept here: other repositories and linked folders: {', '.join(map(str, self.folders))}")
        return lines

    def pack(self, archive: Path, added: Mapping[str, bytes]) -> None:
        """Write the files, and `added` ones by their path, into a ZIP archive."""
        with ZipFile(archive, "w", ZIP_DEFLATED) as out:
            for path in sorted(self.sizes):
                file = self.root / path
                _write(out, path.as_posix(), file.read_bytes(), file.stat().st_mode)
            for name, content in sorted(added.items()):
                _write(out, name, content, 0o644)


def upload_of(root: Path) -> Upload:
    """Return what a job gets of a folder, in a git repository or not.

    Raises:
        MachineError: git is missing or fails, or a file cannot be read.
    """
    with tempfile.TemporaryDirectory() as name:
        git = ["-C", str(root)]
        if _git(*git, "rev-parse", "--git-dir").returncode:  # a folder without history has ignore files too
            _git("init", "--quiet", name)
            git += [f"--git-dir={name}/.git", f"--work-tree={root}"]

        def listed(*options: str) -> set[Path]:
            return _listed(root, *git, "ls-files", "-z", *options)

        known = listed("--cached", "--others", "--exclude-standard")
        unwanted = listed("--cached", "--others", "--ignored", "--exclude-per-directory=.rayignore")
        sent_by_ray = listed("--others", "--exclude-per-directory=.gitignore") - known
    paths = sorted(known - unwanted)
    folders = tuple(path for path in paths if (root / path).is_dir())
    return Upload(root, _sizes(root, paths), _sizes(root, sent_by_ray - unwanted), folders)


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True)
    except FileNotFoundError as error:
        raise MachineError("git is not installed, which knows the files of a folder", "install git") from error


def _listed(root: Path, *arguments: str) -> set[Path]:
    result = _git(*arguments)
    if result.returncode:
        reason = result.stderr.decode(errors="replace").strip()
        raise MachineError(f"git cannot list the files of {root} ({reason})", "see what `git status` says there")
    return {Path(os.fsdecode(name)) for name in result.stdout.split(b"\0") if name}


def _sizes(root: Path, paths: Iterable[Path]) -> dict[Path, int]:
    """Return the bytes of those that are files; one that was deleted is not there."""
    return {path: (root / path).stat().st_size for path in paths if (root / path).is_file()}


def _largest(sizes: Mapping[Path, int]) -> str:
    largest = sorted(sizes, key=lambda path: (-sizes[path], path))[:LARGEST]
    return ", ".join(f"{path} ({sizes[path] / MIB:.1f} MiB)" for path in largest)


def _write(archive: ZipFile, name: str, content: bytes, mode: int) -> None:
    entry = ZipInfo(name)  # of 1980: the time of a file does not make another archive
    entry.external_attr, entry.compress_type = mode << 16, ZIP_DEFLATED
    archive.writestr(entry, content)
