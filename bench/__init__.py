"""Measurements, one line of JSON each: `python -m bench --help`. Not part of the product."""
