"""Counter-based random streams: every draw is a function of (seed, stream, counters).

Nothing that draws numbers keeps a state between steps, so a run resumed at any step, evaluated at
any other moment, or spread over any number of processes meets the same numbers.
"""

import hashlib


def derive_seed(seed: int, *keys: str | int) -> int:
    """A 63-bit seed for the stream that `keys` name, as in `(seed, "rollout", step, row)`.

    Different keys give independent streams (BLAKE2b of the keys), whatever their order of use.
    """
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
