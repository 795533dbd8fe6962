"""What a recipe may ask for where the teacher reads a student's text, not its tokens. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brim.training.settings import RunConfig


def check_reading(config: RunConfig) -> None:
    """Check that the settings go together with `teacher.reads`.

    Raises:
        ValueError: names the setting, and what to choose.
    """
    objective, student = config.objective, config.student
    if config.teacher.reads == "tokens":
        if student.tokenizer is not None:
            raise ValueError(
                "student.tokenizer: the teacher reads the student's tokens; set teacher.reads to "
                "text, or leave the tokenizer out"
            )
        return
    if student.keep_layers is not None:
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
