"""What an evaluation counts: retrieval ranks, temporal overlap, and the summary of a list of trajectories."""
