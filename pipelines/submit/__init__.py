"""`vsr1 submit` and `vsr1 stop`: a stage as a job of a cluster, with everything checked before it starts."""
