"""What a recipe may ask for where a teacher shows less than its distribution. No torch."""

from __future__ import annotations

from brim.objectives.method import MethodConfig


def check_reading(
    reads: str, objective: MethodConfig, *, own_tokenizer: bool, keeps_layers: bool
) -> None:
    """Check that the settings go together with `teacher.reads`.

    Args:
        reads: `tokens` or `text`.
        objective: the method.
        own_tokenizer: the student has settings of one.
        keeps_layers: the student is made of the teacher's layers.

    Raises:
        ValueError: names the setting, and what to choose.
    """
    if reads == "tokens":
        if own_tokenizer:
            raise ValueError(
                "student.tokenizer: the teacher reads the student's tokens; set teacher.reads to "
                "text, or leave the tokenizer out"
            )
        return
    if keeps_layers:
        raise ValueError(
            "student.keep_layers: layers of the teacher come with its tokenizer; set teacher.reads "
            "to tokens"
        )
    check_two_numbers(
        objective,
        "compares distributions over one vocabulary, and a teacher that reads text has another",
    )
    if getattr(objective, "truncated", None) == "bootstrap":
        raise ValueError(
            "objective.truncated: bootstrap needs the teacher's state behind the last token, and a "
            "text may be cut inside one of its tokens; choose keep or drop"
        )


# What needs all of a teacher's logits -> what to choose instead.
_INSTEAD = {
    "q_centering=policy": "choose objective.q_centering=logsumexp",
    "immediate=expected": "choose objective.immediate=sampled; for anchored also "
    "objective.expected_regrets=false",
    "expected_regrets=true": "choose objective.expected_regrets=false",
}
_OTHER_METHODS = "choose llmr, brim, anchored, ppo_llmr, ppo_brim or seqkd"


def check_two_numbers(objective: MethodConfig, why: str) -> None:
    """Check that two numbers a token of the teacher are enough for a method.

    Args:
        objective: the method.
        why: what it needs, and why that cannot be had here.

    Raises:
        ValueError: names the setting, and what to choose.
    """
    if (setting := objective.whole_distribution) is not None:
        instead = _INSTEAD.get(setting, _OTHER_METHODS)
        raise ValueError(f"objective.{setting}: {why}; {instead}")
