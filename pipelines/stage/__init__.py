"""What every stage stands on: its actors, its tasks, its display and what a failed run leaves."""
