"""Advantages and losses as pure functions, and the learner that steps on them."""
