"""The paper's formulas for one completion, in plain Python loops, as slow as they read.

Lists count from 0, so the paper's last step T is `len(taken) - 1` and a completion has T + 1 steps.
"""

import math
from collections.abc import Sequence


def clip(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))


def equation_2(taken: Sequence[float], best: Sequence[float]) -> list[float]:
    rewards = []
    for t in range(len(taken)):
        best_next = best[t + 1] if t + 1 < len(best) else 0.0
        rewards.append(taken[t] - best_next)
    return rewards


def equation_4(taken: Sequence[float], best: Sequence[float]) -> list[float]:
    rewards = equation_2(taken, best)
    return [math.fsum(rewards[t:]) for t in range(len(rewards))]


def equation_7(
    taken: Sequence[float], best: Sequence[float], k: int, limit: float = math.inf
) -> list[float]:
    last = len(taken) - 1
    returns = []
    for t in range(last + 1):
        blocks = []
        for i in range((last - t) // k + 1):
            end = t + (i + 1) * k
            blocks.append(clip(taken[t + i * k] - (best[end] if end <= last else 0.0), limit))
        returns.append(math.fsum(blocks))
    return returns


def algorithm_1(
    taken: Sequence[float], best: Sequence[float], k: int, limit: float = math.inf
) -> list[float]:
    last = len(taken) - 1
    returns = [0.0] * len(taken)
    for t in range(last, -1, -1):
        if t == last:
            returns[t] = clip(taken[t], limit)
        elif last - t < k:
            returns[t] = clip(taken[t] - best[t + 1], limit) + returns[t + 1]
        else:
            returns[t] = clip(taken[t] - best[t + k], limit) + returns[t + k]
    return returns
