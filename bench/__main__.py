"""`python -m bench NAME`: one measurement, printed as one line of JSON."""

from bench.commands import app

app()
