"""The engines that answer, and the weights they hold."""
