"""Which examples a step sees: a pure function of the seed and the step, so nothing is stored."""

from functools import lru_cache

import numpy as np

from brim.seeding import derive_seed


def batch_positions(step: int, batch_size: int) -> range:
    """Positions of step `step` (from 0) in the endless stream of shuffled epochs."""
    return range(step * batch_size, (step + 1) * batch_size)


def example_index(position: int, num_examples: int, seed: int) -> int:
    """The example at a position of the stream: each one once an epoch, a new order every epoch."""
    epoch, offset = divmod(position, num_examples)
    return int(_epoch_order(num_examples, seed, epoch)[offset])


def minibatch_numbers(num_rows: int, num_minibatches: int, seed: int) -> np.ndarray:
    """(num_rows,) the minibatch of each row, at random; their sizes differ by 1 at most."""
    return np.random.default_rng(seed).permutation(np.arange(num_rows) % num_minibatches)


@lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    rng = np.random.default_rng(derive_seed(seed, "order", epoch))
    return rng.permutation(num_examples)
