"""The report of runs: one HTML page that needs no network, and the metric table for the terminal."""
