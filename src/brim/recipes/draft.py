"""A first recipe of one's own: four answers become a commented file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from brim.config.schema import MODELINE
from brim.config.yaml import dump
from brim.errors import ConfigError
from brim.objectives import OBJECTIVES
from brim.objectives.divergence_settings import DivergenceConfig
from brim.recipes.first_row import FirstRow, read_first_row
from brim.support.files import atomic_write_text, disk_errors
from brim.tasks import AnyTask

SCRATCH = "scratch"
"""The answer for a model that is built and trained from nothing."""


@dataclass(frozen=True)
class _Sizes:
    """Tokenizer and token limits that suit a task's text."""

    kind: str
    vocab_size: int
    prompt: int
    completion: int


_FILES = _Sizes("bpe", 2000, 128, 64)
_SIZES = {
    "cmudict": _Sizes("word", 200, 20, 20),
    "synopsis": _Sizes("bpe", 4000, 128, 32),
    "wordproblems": _Sizes("bpe", 800, 200, 96),
    "xsum": _Sizes("bpe", 8000, 1024, 64),
    "europarl": _Sizes("bpe", 8000, 80, 80),
    "gsm8k": _Sizes("bpe", 2000, 200, 300),
}

TASKS = tuple(
    name
    for task in get_args(get_args(AnyTask)[0])
    for name in get_args(task.model_fields["name"].annotation)
    if name != "files"
)


METHODS = "\n".join(
    f"  {name:<9} {(settings.__doc__ or '').partition(chr(10))[0]}"
    for name, (settings, _) in OBJECTIVES.items()
)

# The four questions.
DATA = f"""What is it trained on?
  a file of rows: .jsonl, .csv, .tsv
  or a task: {", ".join(TASKS)}"""
TEACHER = f"""Who teaches?
  a model's folder or hub name
  or {SCRATCH}: a small T5-type model, trained on the targets first"""
STUDENT = f"""Who learns?
  a model's folder or hub name
  or a number: so many of the teacher's layers
  or, where the teacher is, {SCRATCH}"""
METHOD = f"By which method?\n{METHODS}"


@dataclass(frozen=True)
class Data:
    """What is trained on: a task's name, or a file and what its first row holds."""

    name: str
    row: FirstRow | None = None


def find_data(answer: str) -> Data:
    """Return the data that an answer names: one of `TASKS`, or a file.

    Raises:
        DataError: there is no such file, or its first row cannot be used.
    """
    return Data(answer) if answer in TASKS else Data(answer, read_first_row(answer))


def check_teacher(data: Data, answer: str) -> str:
    """Return the answer: `scratch`, or a model's folder or hub name.

    Raises:
        ConfigError: a teacher from scratch cannot learn from the data.
    """
    if not answer.strip():
        raise ConfigError(f"teacher: give {SCRATCH}, or a model's folder or hub name")
    if answer == SCRATCH and data.row is not None:
        if data.row.is_chat:
            raise ConfigError(
                f"teacher: {SCRATCH} has no chat template, and {data.name} holds chats; give a "
                "model's folder or hub name"
            )
        if not data.row.has_target:
            raise ConfigError(
                f"teacher: {SCRATCH} has nothing to learn from, for {data.name} has no targets; "
                "give a model's folder or hub name"
            )
    return answer


def check_student(teacher: str, answer: str) -> str:
    """Return the answer: `scratch`, a number of the teacher's layers, or a model to load.

    Raises:
        ConfigError: it does not go with the teacher, with whom it shares the tokenizer.
    """
    if answer.isascii() and answer.isdecimal() and int(answer) > 0:
        return answer
    if teacher == SCRATCH and answer != SCRATCH:
        raise ConfigError(
            f"student: {answer!r} does not have the tokenizer of a teacher from scratch; give "
            f"{SCRATCH}, or how many of the teacher's layers to keep"
        )
    if teacher != SCRATCH and (answer == SCRATCH or not answer.strip()):
        raise ConfigError(
            "student: beside a loaded teacher give a model's folder or hub name, or how many of "
            "the teacher's layers to keep"
        )
    return answer


def default_teacher(data: Data) -> str | None:
    """Return the teacher where none is given; None where one has to be."""
    return SCRATCH if data.row is None or data.row.teaches else None


def default_student(teacher: str) -> str | None:
    """Return the student where none is given; None where one has to be."""
    return SCRATCH if teacher == SCRATCH else None


def check_method(answer: str) -> str:
    """Return the answer, the name of a method.

    Raises:
        ConfigError: there is no such method.
    """
    if answer not in OBJECTIVES:
        raise ConfigError(f"method: {answer!r} is not one of {', '.join(OBJECTIVES)}")
    return answer


def check_new(path: Path) -> None:
    """Check that a recipe can be written here.

    Raises:
        ConfigError: there is a file, or its name is no recipe's.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: name the recipe .yaml or .yml")
    if path.exists():
        raise ConfigError(f"{path}: there already; name another file, or remove it")


def write_new(path: Path, text: str) -> None:
    """Write a recipe where there is none; raises like `check_new`, and RunError for the disk's."""
    check_new(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text)


def draft(data: Data, teacher: str, student: str, method: str) -> str:
    """Return the text of a recipe, which `load_config` reads and which extends no other.

    Args:
        data: of `find_data`.
        teacher: as `check_teacher` returns it.
        student: as `check_student` returns it.
        method: as `check_method` returns it.
    """
    sizes, scratch = _SIZES.get(data.name, _FILES), teacher == SCRATCH
    models = "from scratch" if scratch else f"with {teacher} as the teacher"
    lines = [
        MODELINE,
        "# Written by brim init. What it takes: brim plan FILE. To run it: brim train FILE.",
        "# Editors that read the line above explain and complete all keys of docs/settings.md.",
        f"description: {_value(f'{method} on {data.name} {models}')}",
        "task:",
        *_indent(_task(data)),
        "teacher:",
        *_indent(_teacher(teacher, student, sizes)),
        "student:",
        *_indent(_student(student, scratch)),
        *_objective(method),
        "decoding:",
        *_indent(_decoding(sizes, scratch)),
        *_loop(method, scratch),
    ]
    return "\n".join(lines) + "\n"


def _task(data: Data) -> list[str]:
    if data.row is None:
        return [f"name: {data.name}", "# max_train_examples: 10000  # keep only the first so many"]
    settings = [f"{key}: {_value(value)}" for key, value in data.row.settings.items()]
    known = ", ".join(_value(name) for name in data.row.columns)
    return [
        "name: files",
        f"train: {_value(data.name)}  # a relative path counts from where brim is run",
        "# Guessed from the first row, which has: " + known,
        *settings,
        '# prompt: "Question: {question}"  # a template in place of prompt_column',
        "# validation and test: of their own, or 5 % of the prompts each are kept back.",
        "metrics: [chrf, bleu, rougeL, exact_match]",
    ]


def _teacher(teacher: str, student: str, sizes: _Sizes) -> list[str]:
    if teacher != SCRATCH:
        return [
            f"path: {_value(teacher)}",
            "# Fine-tune it on the targets first:",
            "# train: {optim: {lr: 5e-5, warmup_steps: 20}, trainer: {num_epochs: 2}}",
        ]
    layers = 2 if student == SCRATCH else 2 * int(student)
    return [
        f"tokenizer: {{kind: {sizes.kind}, vocab_size: {sizes.vocab_size}}}",
        f"build: {{family: t5, d_model: 128, layers: {layers}, heads: 4}}",
        "train:  # on the targets",
        "  optim: {lr: 2e-3, warmup_steps: 100, schedule: linear}",
        "  trainer: {max_steps: 1000, evaluate_every: 250}",
    ]


def _student(student: str, scratch: bool) -> list[str]:
    if student == SCRATCH:
        source = "build: {family: t5, d_model: 64, layers: 2, heads: 4, dropout: 0.0}"
    elif student.isdecimal():
        source = f"keep_layers: {student}  # of the teacher's, evenly spaced"
    else:
        source = f"path: {_value(student)}"
    steps = "max_steps: 500, evaluate_every: 250" if scratch else "num_epochs: 2"
    rate = "2e-3, warmup_steps: 50" if scratch else "5e-5, warmup_steps: 20"
    return [
        source,
        "predistill:  # on what the teacher writes; every method begins better behind it",
        f"  optim: {{lr: {rate}}}",
        f"  trainer: {{{steps}}}",
    ]


def _objective(method: str) -> list[str]:
    if method in ("brim", "ppo_brim"):
        return [f"objective: {{name: {method}, k: 2}}  # 4, 8 and 16 too for long outputs"]
    if method == "anchored":
        return ["objective: {name: anchored, per_token: true}  # false: short texts are better"]
    return [f"objective: {{name: {method}}}"]


def _decoding(sizes: _Sizes, scratch: bool) -> list[str]:
    temperature = 0.5 if scratch else 1.0
    return [
        f"max_prompt_tokens: {sizes.prompt}  # longer prompts are cut, and counted",
        f"max_tokens: {sizes.completion}  # of a completion",
        f"temperature: {temperature}  # of rollouts; below 1 where the student is small",
    ]


def _loop(method: str, scratch: bool) -> list[str]:
    by_divergence = issubclass(OBJECTIVES[method][0], DivergenceConfig) or method == "seqkd"
    if scratch:
        rate = "1e-3" if by_divergence or method == "anchored" else "3e-4"
        steps = "max_steps: 200, evaluate_every: 50"
    else:
        rate, steps = "5e-5" if by_divergence else "1e-5", "num_epochs: 1"
    return [
        f"optim: {{lr: {rate}, warmup_steps: 20}}  # where every score falls, it is too high",
        f"trainer: {{{steps}, rollout_batch_size: 64}}",
        "# The checkpoint is picked by what is trained for; without `metric`, by the task's first.",
        "evaluation: {metric: expected_return, max_validation_examples: 500}",
    ]


def _indent(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _value(value: Any) -> str:
    """A value as YAML on one line."""
    return dump([value], flow=True).strip()[1:-1]
