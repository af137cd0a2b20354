"""The agent loop and what it leaves behind."""
