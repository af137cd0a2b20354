"""The sections of the configuration; `vsr1.config` puts them together."""
