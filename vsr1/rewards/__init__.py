"""Task rewards: pure functions of a trajectory, each bounded and logged by name."""
