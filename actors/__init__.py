"""The Ray actors, one file a role. They hold state and pass messages; the logic is in `vsr1`."""
