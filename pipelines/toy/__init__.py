"""The demo on the toy corpus."""
