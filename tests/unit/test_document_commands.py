"""Every command of the documents is one that its program takes: names, options, files, settings, and its dry run.

A command is a line of a fenced block or an inline code span that begins with a program of `PROGRAMS`. One that is cut
short, as `vsr1 submit` or with `...`, is checked as far as it goes; one "of commit HASH" belongs to that commit.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from bench import commands as bench
from pipelines.cli import app
from vsr1.config import load_config

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`(?! of commit)")
PROGRAMS = ("vsr1", "python -m", "make", "pytest", "ray start", "ray job", "ray stop", "ray get-auth-token")
STANDS_FOR = {  # placeholders of the documents, where another word would be refused
    "STAGE": "grpo", "CONFIG": "configs/toy.yaml", "N": "2", "M": "2", "K": "2", "S": "0",
}  # fmt: skip
NODES = "cluster.nodes={any: {cpus: 64, gpus: 8, gpu_memory_gib: 80, memory_gib: 512}}"  # not those of this machine
STAGES = ("demo", "sft", "grpo", "eval", "serve")  # that have a dry run
RUN = {  # where each command is run from its command line to its end
    "sft": "tests/contract/run/conftest.py",
    "grpo": "tests/contract/run/conftest.py",
    "score": "tests/unit/test_score_command.py",
    "export": "tests/unit/test_score_command.py",
    "report": "tests/unit/test_report_runs.py",
    "replay": "tests/contract/run/test_replay.py",
    "serve": "tests/contract/head/test_service_deploy.py",
    "swap": "tests/contract/head/test_service_deploy.py",
    "search": "tests/contract/library/test_doors_search.py",
    "ask": "tests/unit/test_asking.py",
    "mcp": "tests/contract/library/test_doors.py",
    "submit": "tests/contract/head/test_submit.py",
    "stop": "tests/contract/head/test_submit.py",
    "scale": "tests/unit/test_scale.py",
    "data build": "tests/contract/head/test_submit.py",  # as the job of `submit data`
    "data check": "tests/unit/data/test_check.py",
    "data convert": "tests/unit/data/test_convert.py",
    "data unpack": "tests/unit/test_prepared.py",
    "key": "tests/unit/test_document_commands.py",
    "data toy": "tests/unit/test_document_commands.py",
}
RUN_BEHIND_THE_PARSER = {  # where what the command calls is run to its end
    "demo": "tests/contract/run/conftest.py",  # its stages, one after another
    "doctor": "tests/unit/test_doctor.py",
    "eval": "tests/contract/test_evaluation.py",
    "retriever": "tests/contract/library/test_without_agents.py",
}


def documented() -> Iterator[Any]:
    """Yield each command of the documents once, with the document that has it first."""
    seen = set()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        lines = [line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
        for line in lines + [" ".join(code.split()) for code in INLINE.findall(FENCE.sub("", text))]:
            if not _is_command(line):
                continue
            words = shlex.split(line.removeprefix("time ").replace("|", " | "), comments=True)
            for arguments in _alternatives(words):
                if tuple(arguments) not in seen:
                    seen.add(tuple(arguments))
                    yield pytest.param(arguments, id=f"{document.name}: {shlex.join(arguments)[:100]}")


def _is_command(line: str) -> bool:
    return line.removeprefix("time ").startswith(tuple(f"{program} " for program in PROGRAMS))


def _alternatives(words: list[str]) -> list[list[str]]:
    """Return a command for each of `a | b`, with a word that its parser takes for each placeholder."""
    if "|" in words:
        place = words.index("|")
        first, second = words[:place] + words[place + 2 :], words[: place - 1] + words[place + 1 :]
        return _alternatives(first) + _alternatives(second)
    return [[STANDS_FOR.get(word, word) for word in words if word != "section.key=value"]]


def _stage(words: list[str]) -> list[str]:
    """Return the arguments of a command of ours that has a dry run, is written out and asks no store, else none."""
    is_ours = (words[0] == "vsr1" or words[1:3] == ["-m", "pipelines"]) and not any("s3://" in word for word in words)
    arguments = words[1 if words[0] == "vsr1" else 3 :] if is_ours else []
    return arguments if len(arguments) > 1 and arguments[0] in STAGES else []


DOCUMENTED = list(documented())


def test_the_documents_have_commands() -> None:
    assert len(DOCUMENTED) > 90


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a folder like the repository's after `make demo`."""
    for name in ("configs", "checkpoints", "cluster", "tests"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    run = tmp_path / "runs/demo/checkpoints"
    run.mkdir(parents=True)
    for name in ("sft", "grpo"):
        (run / name).symlink_to(REPOSITORY / "checkpoints/toy/sft")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", DOCUMENTED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own command line
def test_its_program_takes_it(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in words:
        if word.startswith(("configs/", "cluster/", "tests/")):
            assert Path(word).exists(), f"{word} does not exist"
    program, *arguments = words
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    elif program == "ray":
        from ray.scripts import scripts

        values = _parsed(scripts.cli, arguments, monkeypatch)
        if entrypoint := list(values.get("entrypoint", ())):
            test_its_program_takes_it(entrypoint, folder, monkeypatch)
    elif program == "vsr1" or words[1:3] == ["-m", "pipelines"]:
        _check_settings(_parsed(typer.main.get_command(app), words[1 if program == "vsr1" else 3 :], monkeypatch))
    elif words[1:3] == ["-m", "bench"]:
        _check_settings(_parsed(typer.main.get_command(bench.app), words[3:], monkeypatch))
    elif program == "python":
        assert (REPOSITORY / words[2].replace(".", "/")).with_suffix(".py").is_file()


def _parsed(command: Any, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the values that a program's own parser gives its command, none for a name without them or for help.

    What comes after the parser is left out: the command is not run.
    """
    rest = list(arguments)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    assert not hasattr(command, "commands") or rest in ([], ["--help"]), f"no such command: {rest}"
    is_whole = "..." not in rest
    rest = [word for word in rest if word != "..."]
    if not rest or rest == ["--help"]:
        return {}
    values: dict[str, Any] = {}
    monkeypatch.setattr(command, "callback", lambda **given: values.update(given))
    if not is_whole:
        for parameter in command.params:
            monkeypatch.setattr(parameter, "required", False)
    command.main(rest, standalone_mode=False)
    return values


def _check_settings(values: dict[str, Any]) -> None:
    if "overrides" in values:
        load_config([Path(file) for file in values.get("config") or []], list(values["overrides"] or []))


@pytest.mark.parametrize("words", [case for case in DOCUMENTED if _stage(case.values[0])])
def test_its_dry_run_shows_the_plan(words: list[str], folder: Path) -> None:
    """And what it lacks, at most, is what the command before it in the document makes."""
    arguments = [word for word in _stage(words) if word not in ("--dry-run", "...")]
    result = CliRunner().invoke(app, [*arguments, "--dry-run", NODES], env={"COLUMNS": "200"})
    assert "run_dir: " in result.output and re.search("what cluster.nodes declares|this machine", result.output)
    lacking = re.compile("folder .* does not exist|docid2row.json is missing; build the dataset first")
    assert all(lacking.search(line) for line in result.stderr.strip().splitlines()), result.stderr
    assert result.exit_code == bool(result.stderr)


@pytest.mark.parametrize(
    "words",
    [
        ["vsr1", "grop"], ["vsr1", "grpo", "--dryrun"], ["vsr1", "sft", "-c", "configs/nothing.yaml"],
        ["vsr1", "sft", "sft.epoch=1"], ["vsr1", "score"] + ["a"] * 2, ["make", "tests"], ["pytest", "tests/none.py"],
        ["python", "-m", "bench", "latent"], ["python", "-m", "bench", "weights", "--way", "smoke"],
        ["python", "-m", "bench.nothing"], ["ray", "job", "submit", "--folder", ".", "--", "ls"],
        ["ray", "job", "submit", "--", "vsr1", "scale"] + ["rollouts=3"] * 2,
    ],
)  # fmt: skip
def test_a_wrong_one_is_refused(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|not exist|unexpected|unknown key|not one of|assert|missing"):
        test_its_program_takes_it(words, folder, monkeypatch)


def test_each_command_of_the_documents_is_run_by_a_test() -> None:
    arguments = [case.values[0][1:] for case in DOCUMENTED if case.values[0][0] == "vsr1"]
    names = {" ".join(rest[: 2 if rest[0] == "data" else 1]) for rest in arguments if not rest[0].startswith("-")}
    places = RUN | RUN_BEHIND_THE_PARSER
    assert names == set(places)
    for name, path in places.items():
        text = (REPOSITORY / path).read_text()
        assert name not in RUN or any(f'"{word}"' in text for word in name.split()), f"{name} is not in {path}"


def test_those_that_no_other_test_runs(folder: Path) -> None:
    key = CliRunner().invoke(app, ["key", "NAME", "--file", "keys.json", "--per-minute", "120", "--at-once", "16"])
    assert key.exit_code == 0 and (folder / "keys.json").is_file()
    sizes = ["--train", "2", "--val", "2", "--test", "2", "--seed", "0"]
    toy = CliRunner().invoke(app, ["data", "toy", "--out", "DIR", *sizes])
    assert toy.exit_code == 0 and toy.output == "2 training, 2 validation and 2 test videos in DIR\n"
