"""Whether this machine can run a configuration: one line for each thing that must work, and the fix where it does not.

Guarantees: every probe that was asked for gives exactly one `Check`; a failed check carries a one-line fix; nothing is
written outside temporary files, except what Ray (its token) and DeepSpeed (a compiled operator) keep in the home folder
after their first start. The probes themselves are in `pipelines.machine.probes`.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pipelines.machine.probes import PROBES, Check, Probe
from vsr1.config import Config


def run_checks(config: Config, probes: Sequence[Probe] = PROBES) -> list[Check]:
    """Run the probes in order; the last ones start processes and take up to a minute together."""
    return [check for probe in probes for check in probe(config)]


def render(checks: Sequence[Check]) -> Table:
    table = Table(title="vsr1 doctor")
    for heading in ("check", "", "found", "fix"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[bold red]fails[/]"
        table.add_row(check.name, mark, check.found, "" if check.ok else check.fix)
    return table


def exit_code(checks: Sequence[Check]) -> int:
    return 0 if all(check.ok for check in checks) else 1


def doctor(config: Config, console: Console | None = None, probes: Sequence[Probe] = PROBES) -> int:
    """Print the table and return the exit code: 0 when everything works, 1 when any check fails."""
    checks = run_checks(config, probes)
    (console or Console()).print(render(checks))
    return exit_code(checks)
