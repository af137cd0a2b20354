"""Settings of the run that the tests of this folder share."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
CONFIG = REPOSITORY / "configs" / "toy.yaml"
SMALL = [
    "sft.max_steps=2", "sft.batch_size=8",
    "grpo.steps=2", "grpo.prompts_per_step=2", "grpo.validate_every=2", "grpo.save_every=1",
    "grpo.group_size=3", "grpo.learner.learning_rate=0.001", "grpo.evaluate_before=true",
    "grpo.evaluate_after=true", "grpo.objective.balance_verdicts=true", "eval.limit=2",
    "eval.split=val", "retrieval.shards=1", "sft.learner.ranks=1", "grpo.learner.ranks=1",  # the fewest processes
    "cluster.rollout.memory_gib=1", "cluster.learner.memory_gib=0.5",  # Ray offers what is free when it starts
]  # fmt: skip
