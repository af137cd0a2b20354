"""What a run leaves in its folder: scalars, trajectories, states and configurations."""
