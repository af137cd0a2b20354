"""Exact retrieval over a corpus of video vectors: shards, their merge, and batched searches. Knows nothing of Ray."""
