"""The learning rate of both stages over a run."""


def annealed(done: float) -> float:
    """Factor of the learning rates: 1 in the first half of a training, then evenly down to 0.

    Args:
        done: share of the training that is over, in 0..1.
    """
    return min(1.0, 2 * (1 - done))
