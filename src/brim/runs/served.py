"""A run's teacher behind a server: connected, checked, and the same as before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from brim.errors import ConfigError, RunError
from brim.examples import Example
from brim.models.server import ServerTeacher
from brim.models.server_checks import (
    check_tokenizer,
    connect,
    describe_served,
    fingerprint_served,
    served_difference,
)
from brim.models.server_settings import ServedModel
from brim.support.files import disk_errors, read_json, write_sealed_json
from brim.training.settings import RunConfig

logger = logging.getLogger(__name__)

_TASK_TEXTS = 8


def load_served(
    settings: ServedModel, config: RunConfig, train: Sequence[Example]
) -> ServerTeacher:
    """Return the teacher of a run, once it is known to suit it.

    Args:
        settings: of the teacher.
        config: the run's settings.
        train: the training split.

    Raises:
        BrimError: the server is away, has another model or tokenizer, or cannot give what the
            method asks for.
    """
    student = config.student
    source = (
        {"name_or_path": settings.tokenizer.path}
        if settings.tokenizer
        else {
            "name_or_path": student.path,
            "revision": student.revision,
            "trust_remote_code": student.trust_remote_code,
        }
    )
    teacher = connect(settings, source)
    centering = getattr(config.objective, "q_centering", None)
    if centering is not None and centering not in teacher.api.centerings:
        raise ConfigError(
            f"objective.q_centering: the server ({teacher.api.name}) does not give {centering}; "
            f"choose {' or '.join(teacher.api.centerings)}"
        )
    texts = [text for row in train[:_TASK_TEXTS] for text in (row.prompt, *row.references) if text]
    if not check_tokenizer(teacher, texts):
        logger.warning(
            "teacher.server: the server does not say how it reads text: whether its tokenizer is "
            "the student's was not checked"
        )
    return teacher


def recognize(
    teacher: ServerTeacher, known: Mapping[str, Any] | None, out: Path, stages_dir: Path
) -> tuple[str, dict[str, Any]]:
    """Return fingerprint and facts of a teacher that is the one of before, in a run and its stages.

    Args:
        teacher: behind the server.
        known: the facts of a run that is resumed; None of a new one.
        out: the run directory.
        stages_dir: keeps the facts of the model that its stages were made with.

    Raises:
        RunError: another model is behind the name.
    """
    fingerprint, facts = fingerprint_served(teacher), describe_served(teacher)
    path = stages_dir / f"server-{fingerprint[:12]}.json"
    places = {out: known, path: read_json(path) if path.exists() else None}
    for place, before in places.items():
        problem = served_difference(before, facts) if before else None
        if problem is not None:
            raise RunError(
                f"{place}: the model {teacher.api.model!r} behind the server is not the one of "
                f"before: {problem}; serve that one, or choose another --out and --stages"
            )
    # The first ones stay: small differences must not add up.
    first = known or places[path]
    if first is not None:
        facts = {**facts, "probe": first["probe"], "noise": first["noise"]}
    if places[path] is None and PartialState().is_main_process:
        with disk_errors(path):
            stages_dir.mkdir(parents=True, exist_ok=True)
            write_sealed_json(path, facts)
    return fingerprint, facts
