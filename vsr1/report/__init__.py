"""The report of runs: one HTML page that needs no network, and the metric table for the terminal."""

from vsr1.report.page import Run, write_report
from vsr1.report.rows import TRAINING, row_of
from vsr1.report.terminal import metric_table

__all__ = ["TRAINING", "Run", "metric_table", "row_of", "write_report"]
