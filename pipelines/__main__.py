"""`python -m pipelines grpo ...`: the command line where its script is not on the path, as in a submitted job."""

from pipelines.cli import app

app()
