"""Counter-based random streams: every draw is a function of (seed, stream, counters).

Nothing that draws numbers keeps a state between steps, so a run resumed at any step, evaluated at
any other moment, or spread over any number of processes meets the same numbers.
"""

import hashlib
from functools import lru_cache

import numpy as np


def derive_seed(seed: int, *keys: str | int) -> int:
    """A 63-bit seed for the stream that `keys` name, as in `(seed, "rollout", step, row)`.

    Different keys give independent streams (BLAKE2b of the keys), whatever their order of use.
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


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
