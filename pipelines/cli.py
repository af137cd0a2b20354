"""The command line: `vsr1 --help`. Every command reads one YAML file and `section.key=value` overrides."""

from __future__ import annotations

import typer

from pipelines.data import commands as data
from pipelines.evaluation import commands as evaluation
from pipelines.machine import commands as machine
from pipelines.serve import commands as serve
from pipelines.toy import commands as toy
from pipelines.train import commands as train

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train, evaluate and serve a video search agent.")
for wing in (toy, machine, train, evaluation, serve):
    app.add_typer(wing.commands)
app.add_typer(data.commands, name="data")
