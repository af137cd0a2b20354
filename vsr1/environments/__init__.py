"""The environments as everything around an episode sees them: their files, tasks, rewards, figures and settings."""
