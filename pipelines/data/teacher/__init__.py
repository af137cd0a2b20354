"""Who writes the reasoning of SFT records: rules, engines of our own, or an OpenAI-compatible server."""
