"""Dataset construction: from raw videos and annotations, or published shards, to clips, vectors and records."""
