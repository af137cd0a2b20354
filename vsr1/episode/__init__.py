"""The episode loop and what it leaves behind, the same for every environment."""
