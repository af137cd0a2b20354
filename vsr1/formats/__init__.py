"""Files of a prepared dataset and of a checkpoint, read and written by field name."""
