"""The report of runs: one HTML page that needs no network, and the metric table for the terminal."""

from vsr1.report.metric_rows import metric_table
from vsr1.report.page import Run, write_report
from vsr1.report.rows import TRAINING, row_of

__all__ = ["TRAINING", "Run", "metric_table", "row_of", "write_report"]
