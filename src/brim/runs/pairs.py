"""Teacher and student as a pair: of one vocabulary, or a teacher that reads text in its own."""

from __future__ import annotations

from collections.abc import Sequence

from brim.examples import Example
from brim.models import AlignedTeacher, LanguageModel, Teacher, same_tokenizer, share_vocabulary
from brim.training.settings import RunConfig

# Training targets on which the teacher's boundaries are tried where it reads text.
TRIED = 256


def match(config: RunConfig, teacher: Teacher, student: Teacher) -> None:
    """Have a pair share its vocabulary, unless the teacher reads text in another one.

    Raises:
        ModelError: as `share_vocabulary`.
    """
    if config.teacher.reads == "tokens" or same_tokenizer(teacher, student):
        share_vocabulary(teacher, student)


def scorer(
    config: RunConfig, train: Sequence[Example], teacher: Teacher, student: LanguageModel
) -> Teacher:
    """Return the teacher as it scores a student's text: itself where they share a tokenizer."""
    if config.teacher.reads == "tokens" or same_tokenizer(teacher, student):
        return teacher
    texts = (text for example in some_targets(train, TRIED) for text in example.references)
    limit = config.decoding.max_prompt_tokens
    return AlignedTeacher(teacher, student.encoder, max_prompt_tokens=limit, texts=texts)


def some_targets(train: Sequence[Example], number: int) -> list[Example]:
    """Return so many training examples, evenly spaced, less those without a target."""
    rows = range(0, len(train), max(len(train) // number, 1))[:number]
    return [example for row in rows if (example := train[row]).references]
