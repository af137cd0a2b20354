"""The trained agent as a Ray Serve application: gateway (HTTP), agents (engines), library (corpora)."""
