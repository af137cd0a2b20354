"""A driver keeps its console: libraries and native code write to its log, its own lines and errors are shown."""

import subprocess
import sys
from pathlib import Path

DRIVER = """
import logging, os, sys, warnings
from pathlib import Path
from actors.logs import log_libraries_to
log_libraries_to(Path(sys.argv[1]))
logging.getLogger("a.library").info("logged")
warnings.warn("warned")
os.write(2, b"native line\\n")
print("own line")
print("own error", file=sys.stderr)
"""


def run(script: str, log: Path) -> tuple[int, str, str, str]:
    """Return the exit code, both streams and the log."""
    command = [sys.executable, "-c", script, str(log)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return process.returncode, process.stdout, process.stderr, log.read_text()


def test_libraries_and_native_code_write_to_the_log(tmp_path: Path) -> None:
    code, output, errors, log = run(DRIVER, tmp_path / "logs" / "driver.log")
    assert (code, output, errors) == (0, "own line\n", "own error\n")
    for text in ("INFO a.library: logged", "UserWarning: warned", "\nnative line\n", " begins\n"):
        assert text in log, log
    assert run(DRIVER, tmp_path / "logs" / "driver.log")[3].startswith(log), "a later run writes on"


def test_an_error_is_shown_where_it_was(tmp_path: Path) -> None:
    code, _, errors, log = run(DRIVER + "raise ValueError('the reason')", tmp_path / "driver.log")
    assert (code, errors.splitlines()[-1]) == (1, "ValueError: the reason")
    assert "the reason" not in log


def test_native_code_that_ends_the_process_is_shown_with_its_traceback(tmp_path: Path) -> None:
    code, _, errors, _ = run(DRIVER + "os.abort()", tmp_path / "driver.log")
    assert code < 0
    assert "Fatal Python error: Aborted" in errors and 'File "<string>", line 11 in <module>' in errors
