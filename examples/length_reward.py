r"""A task reward of your own: how near a text's length is to its reference's.

    PYTHONPATH=examples brim train cmudict/anchored \
        objective.reward.metric=length_reward:closeness objective.reward.weight=16

It knows nothing of what the text says, and so is the control of a reward that does: where both
bring texts back to their length, only the other should bring back what is right.
"""

from collections.abc import Sequence

from brim import Example


def closeness(completions: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """Return 1 for as many words as the nearest reference has, 0 for none or twice as many."""
    return [
        max(_closeness(len(text.split()), len(reference.split())) for reference in group)
        for text, group in zip(completions, (e.references for e in examples), strict=True)
    ]


def _closeness(length: int, wanted: int) -> float:
    return max(0.0, 1 - abs(length - wanted) / max(wanted, 1))
