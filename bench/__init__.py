"""Measurements, one line of JSON each: `python -m bench --help`. Not part of the product.

A file is one measurement: a public function that takes plain arguments and returns a dict of figures, timed in the
frame of `bench/measure.py`, and a command of a few lines in `bench/commands.py`. `engine.py` holds the three that share
an engine on random weights; `load.py` is the clients of a service.
"""
