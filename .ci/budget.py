"""Counts the code lines of each wing and fails when one is over its budget: `python .ci/budget.py`, in `make lint`.

A code line is a line that is not blank, not a comment and not part of a docstring; of a script, a line that is not
blank. Budgets are in `pyproject.toml` under `tool.budget`; every Python file of the packages belongs to one wing.
"""

import ast
import io
import sys
import tokenize
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source: str) -> int:
    """Return the number of code lines of a Python source."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def main() -> int:
    budget = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["budget"]
    wings: dict[str, list[str]] = {name: wing["folders"] for name, wing in budget["wings"].items()}
    counts = dict.fromkeys(wings, 0)
    faults = []
    for path in sorted(path for folder in budget["packages"] for path in (ROOT / folder).rglob("*.py")):
        name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
        owners = [wing for wing, folders in wings.items() if any(name.startswith(folder) for folder in folders)]
        if len(owners) != 1:
            faults.append(f"{name} belongs to {owners or 'no wing'}; name its folder once under tool.budget.wings")
            continue
        counts[owners[0]] += code_lines(text)
        if len(text.splitlines()) > budget["longest_file"]:
            faults.append(f"{name} has more than {budget['longest_file']} lines; split it by role")
    for wing, count in counts.items():
        limit = budget["wings"][wing]["lines"]
        print(f"{wing:12} {count:6} of {limit}")
        if count > limit:
            faults.append(f"wing {wing} has {count} code lines, {count - limit} over its budget; remove some")
    script = sum(
        sum(1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        for folder in budget["packages"]
        for path in (ROOT / folder).rglob("*.js")
    )
    total = sum(counts.values())
    print(f"{'all Python':12} {total:6} of {budget['lines']}\n{'script':12} {script:6} of {budget['script_lines']}")
    if total > budget["lines"]:
        faults.append(f"the packages have {total} code lines, {total - budget['lines']} over their budget")
    if script > budget["script_lines"]:
        faults.append(f"scripts have {script} lines, {script - budget['script_lines']} over their budget")
    for fault in faults:
        print(f"budget: {fault}", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
