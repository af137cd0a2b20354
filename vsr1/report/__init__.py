"""The report of a run: one HTML page that needs no network, and the metric table for the terminal."""

from vsr1.report.page import write_report
from vsr1.report.selection import pick_trajectories
from vsr1.report.terminal import metric_table

__all__ = ["metric_table", "pick_trajectories", "write_report"]
