"""What an agent can do: play a split, score, export, report and replay."""
