"""One seed of several numbers, so that a draw depends on what it is for and on nothing drawn before."""

import numpy as np

__all__ = ["joined_seed"]


def joined_seed(*numbers: int) -> int:
    """A seed of 32 bits for, say, a run's seed, an epoch and a row (`numpy.random.SeedSequence`)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
