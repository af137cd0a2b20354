"""The search environment: retrieve, look, judge, refine."""
