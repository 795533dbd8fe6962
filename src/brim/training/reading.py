"""What a recipe may ask for where the teacher reads a student's text, not its tokens. No torch."""

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
    if (setting := objective.whole_distribution) is not None:
        raise ValueError(
            f"objective: {objective.name} with {setting} compares distributions over one "
            "vocabulary, and a teacher that reads text has another; choose seqkd, llmr, brim, "
            "ppo_llmr or ppo_brim with q_centering=mean, or anchored with immediate=sampled and "
            "expected_regrets=false"
        )
    if getattr(objective, "truncated", None) == "bootstrap":
        raise ValueError(
            "objective.truncated: bootstrap needs the teacher's state behind the last token, and a "
            "text may be cut inside one of its tokens; choose keep or drop"
        )
