"""Stages: pieces of a run that are made once, kept on disk and used again.

A stage's folder is named by a hash of everything that it depends on: changed inputs make a new
folder, unchanged ones find the finished work. `done.json` is written last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from brim._version import __version__
from brim.config.loading import config_hash
from brim.errors import RunError
from brim.examples import Example
from brim.models import LanguageModel, Teacher, TeacherOfEach, same_tokenizer, whole
from brim.objectives.seqkd import SeqKD
from brim.objectives.settings import SeqKDConfig
from brim.runs.directory import RunDirectory
from brim.runs.fit import fit
from brim.runs.inputs import Made, RunInputs
from brim.runs.models import check_device, check_known, cut_student, load_teacher
from brim.runs.pairs import scorer
from brim.support.files import SEAL, disk_errors, read_json, sha256_file, write_sealed_json
from brim.support.seals import MANIFEST, find_damage, seal
from brim.training.accelerator import hold_together
from brim.training.completions import CompletedExamples, write_completions
from brim.training.loop_settings import SupervisedConfig
from brim.training.settings import RunConfig
from brim.training.sharding import ShardedTeacher

logger = logging.getLogger(__name__)

INPUTS = "inputs.json"
DONE = "done.json"


@dataclass(frozen=True, slots=True)
class Stage:
    """A folder that holds the finished or unfinished work of a stage.

    Attributes:
        directory: `{root}/{name}-{hash of the inputs}`.
        inputs: everything the work depends on, as plain values; kept in `inputs.json`.
    """

    directory: Path
    inputs: Mapping[str, Any]

    @classmethod
    def open(cls, root: Path, name: str, inputs: Mapping[str, Any]) -> Stage:
        """The stage of these inputs, its folder made if need be."""
        inputs = {"brim": __version__, **inputs}
        stage = cls(root / f"{name}-{config_hash(inputs)[:12]}", inputs)
        if PartialState().is_main_process and not stage.finished:
            with disk_errors(stage.directory):
                stage.directory.mkdir(parents=True, exist_ok=True)
                write_sealed_json(stage.directory / INPUTS, inputs)
        PartialState().wait_for_everyone()
        return stage

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder while the block runs: runs that share stages wait for each other."""
        busy = f"{self.directory}: another run is making it; waiting"
        with hold_together(self.directory / ".lock", busy, wait=True):
            yield

    @property
    def finished(self) -> bool:
        """Whether the work is complete."""
        return (self.directory / DONE).exists()

    @property
    def fingerprint(self) -> str:
        """The folder's name, which represents what the stage makes in the inputs of later ones."""
        return self.directory.name

    @property
    def digest(self) -> str:
        """SHA-256 of `done.json`, which has that of what the stage made; once it is finished."""
        return sha256_file(self.directory / DONE)

    def is_whole(self) -> bool:
        """Whether the work is complete and as it was written; damaged work is opened again."""
        if not self.finished:
            return False
        damage = stage_damage(self.directory)
        PartialState().wait_for_everyone()  # all have looked before anything changes
        if damage is not None and PartialState().is_main_process:
            logger.warning("%s: damaged: %s; making it again", self.directory, damage)
            write_sealed_json(self.directory / INPUTS, self.inputs)
            with disk_errors(self.directory):
                (self.directory / DONE).unlink()
        PartialState().wait_for_everyone()
        return damage is None

    def finish(self, made: str, **facts: Any) -> None:
        """Mark the work as complete; `made` is the file whose SHA-256 is kept."""
        if PartialState().is_main_process:
            seal(self.directory, facts, files=(made, INPUTS), manifest=DONE)
        PartialState().wait_for_everyone()


def stage_damage(directory: Path) -> str | None:
    """What of a finished stage is not as it was written; None where all of it is.

    Of a stage that an older version finished nothing is known: its `inputs.json` has no hash.
    """
    inputs = directory / INPUTS
    try:
        if inputs.exists() and f'"{SEAL}"'.encode() not in inputs.read_bytes()[:64]:
            known = read_json(directory / DONE)
            if isinstance(known, dict) and "files" not in known:
                return None
    except RunError as error:
        return str(error)
    damage = find_damage(directory, manifest=DONE)
    return damage or (find_damage(directory / "best") if (directory / "best").exists() else None)


def check_stage(directory: Path, digest: str | None) -> None:
    """Check that a stage is as it was written, and what a run was begun with.

    Args:
        directory: of the stage.
        digest: `Stage.digest` as the run knows it; None where an older version began it.

    Raises:
        RunError: it is not, or is not finished.
    """
    damage = stage_damage(directory)
    if damage is not None:
        raise RunError(
            f"{directory}: damaged: {damage}; start again the brim train or brim sweep that wrote "
            "it, which makes it again"
        )
    if digest not in (None, sha256_file(directory / DONE)):
        raise RunError(
            f"{directory}: was made again since the run began, to other weights; bring back the "
            "stages folder that the run was begun with"
        )


@dataclass(frozen=True, slots=True)
class TeacherOutputs:
    """The training prompts with the teacher's greedy completions as their targets.

    Attributes:
        examples: those of the training split, with what the teacher wrote.
        fingerprint, digest: of their stage; see `Made`.
    """

    examples: Sequence[Example]
    fingerprint: str
    digest: str


def make_teacher(run: RunInputs, teacher: Made[Teacher]) -> Made[Teacher]:
    """Train the teacher if the recipe says so, and freeze it, as large as its passes may be.

    Args:
        run: whose settings and data.
        teacher: as loaded.
    """
    settings = run.config.teacher
    if settings.train is not None:
        inputs = {"model": teacher.fingerprint}
        untrained = Made(whole(teacher.model), teacher.fingerprint)
        teacher = _train_supervised(run, "teacher", settings.train, inputs, untrained)
    return replace(teacher, model=freeze_teacher(run, teacher.model))


def freeze_teacher(run: RunInputs, model: Teacher) -> Teacher:
    """Return the model frozen, where and in passes as large as the settings of the teacher say."""
    settings = run.config.teacher
    for one in model.teachers.values() if isinstance(model, TeacherOfEach) else ():
        freeze_teacher(run, one)
    if not isinstance(model, LanguageModel):
        return model
    model.batch_tokens = settings.batch_tokens
    model.requires_grad_(False).eval()
    alone = run.accelerator.num_processes == 1
    if settings.sharding == "none" or (alone and settings.sharding == "fsdp"):
        return model.to(settings.device or run.accelerator.device)
    return ShardedTeacher(model, run.accelerator.device, offload=settings.sharding == "offload")


def find_teacher(run: RunInputs) -> Made[Teacher]:
    """Return the teacher of a run that has its stages, frozen.

    Raises:
        RunError: it is missing, or not the one that the run was begun with.
        ConfigError: this machine has no `teacher.device`.
    """
    check_device(run.config)
    settings = run.config.teacher
    if settings.train is None:
        teacher: Made[Teacher] = load_teacher(run)
        check_known(run, "teacher", teacher)
    else:
        teacher = find_trained(run, "teacher")
    return replace(teacher, model=freeze_teacher(run, teacher.model))


def find_trained(run: RunInputs, name: str) -> Made[LanguageModel]:
    """Return a model that a stage of a run made, the teacher or the pre-distilled student.

    It is the one that the run had, whatever the settings would make of it now.

    Raises:
        RunError: it is missing, damaged, or was made again since.
    """
    manifest = RunDirectory(run.out).manifest()
    folder, digest = (manifest.get(key, {}).get(name) for key in ("stages", "stages_sha256"))
    if folder is None:
        raise RunError(
            f"{run.out}: was stopped before it had its teacher and all other stages; resume it by "
            "the brim train or brim sweep that began it"
        )
    directory = run.stages_dir / folder
    if not (directory / "best").exists():
        raise RunError(
            f"{directory / 'best'}: the run's {name} is missing; bring back its stages folder"
        )
    check_stage(directory, digest)
    role = run.config.teacher if name == "teacher" else run.config.student
    return Made(run.reload(directory / "best", role, verified=True), folder, digest)


def write_teacher_outputs(
    run: RunInputs, teacher: Made[Teacher], student: Made[LanguageModel]
) -> TeacherOutputs:
    """Have the teacher complete the training prompts, or find what it wrote before.

    Args:
        run: whose settings and data.
        teacher: the writer.
        student: in whose tokens the texts are learned, if these are not the writer's.
    """
    decoding, train = run.config.decoding, run.examples("train")
    ends = sorted(teacher.model.eos_token_ids)  # of the student too, as what is excluded
    stage = Stage.open(
        run.stages_dir,
        "teacher_outputs",
        {
            "teacher": teacher.fingerprint,
            "excluded": sorted(teacher.model.rules.excluded),
            **({"ends": ends} if len(ends) > 1 else {}),
            "data": run.data()["train"]["sha256"],
            "max_prompt_tokens": decoding.max_prompt_tokens,
            "max_tokens": decoding.max_tokens,
        },
    )
    path = stage.directory / "train.jsonl"
    with stage.locked():
        if stage.is_whole():
            run.reporter.say(f"teacher outputs: unchanged, kept in {stage.directory}")
        else:
            with run.reporter.meter("teacher outputs", len(train)) as meter:
                write_completions(
                    teacher.model,
                    train,
                    path,
                    decoding.greedy(run.config.evaluation.batch_tokens),
                    max_prompt_tokens=decoding.max_prompt_tokens,
                    meter=meter,
                )
            stage.finish(path.name, num_examples=len(train))
    alike = run.config.teacher.reads == "tokens" or same_tokenizer(teacher.model, student.model)
    examples = CompletedExamples(train, path, encoder=None if alike else student.model.encoder)
    if unspelled := examples.count_unspelled():
        run.reporter.say(
            f"warning: teacher outputs: the student's tokenizer cannot spell {unspelled:,} of "
            f"{len(examples):,} texts, and learns them with unknown tokens"
        )
    return TeacherOutputs(examples, stage.fingerprint, stage.digest)


def untrained_student(
    run: RunInputs, loaded: Made[LanguageModel] | None, teacher: Teacher
) -> Made[LanguageModel]:
    """Return the student before any training of it: as loaded, or of the trained teacher's layers.

    Args:
        run: whose settings.
        loaded: the student, unless it is to be made of the teacher's layers.
        teacher: the trained one, whose layers are what is worth keeping.
    """
    return loaded or Made.loaded(run.place(cut_student(run, teacher)))


def untrained_models(
    config: RunConfig, teacher: Made[Teacher], student: Made[LanguageModel]
) -> dict[str, str]:
    """Return by role the fingerprints of the models that are tested before any training."""
    untrained = {"teacher": teacher.fingerprint} if config.teacher.train is None else {}
    if config.student.build is None:  # there is nothing to test in random weights
        untrained["student"] = student.fingerprint
    return untrained


def make_student(
    run: RunInputs,
    student: Made[LanguageModel],
    teacher: Teacher,
    outputs: TeacherOutputs | None,
) -> Made[LanguageModel]:
    """Return the student that the objective starts from, pre-distilled if the recipe says so.

    Args:
        run: whose settings and data.
        student: of `untrained_student`.
        teacher: scores the student.
        outputs: what pre-distillation learns; None without it.
    """
    settings, lora = run.config.student.predistill, run.config.student.lora
    if settings is None:
        return student
    assert outputs is not None
    inputs = {
        "model": student.fingerprint,
        "outputs": outputs.fingerprint,
        "lora": None if lora is None else lora.model_dump(mode="json"),
    }
    return _train_supervised(
        run, "predistill", settings, inputs, student, teacher=teacher, examples=outputs.examples
    )


def _train_supervised(
    run: RunInputs,
    name: str,
    settings: SupervisedConfig,
    inputs: Mapping[str, Any],
    student: Made[LanguageModel],
    *,
    teacher: Teacher | None = None,
    examples: Sequence[Example] | None = None,
) -> Made[LanguageModel]:
    config, data, metric = run.config, run.data(), run.supervised_metric()
    stage = Stage.open(
        run.stages_dir,
        name,
        {
            **inputs,
            "data": data["train"]["sha256"],
            "settings": settings.describe(),
            "max_prompt_tokens": config.decoding.max_prompt_tokens,
            "max_tokens": config.decoding.max_tokens,
            "validation": data["validation"]["sha256"],
            "metric": metric,
            "precision": config.trainer.precision,
            "seed": run.seed_of(name),
        },
    )
    role = config.teacher if name == "teacher" else config.student
    with stage.locked():
        if stage.is_whole():
            run.reporter.say(f"{name}: unchanged, kept in {stage.directory}")
        else:
            fit(
                run,
                name,
                stage.directory,
                student=student.model,
                teacher=teacher and scorer(config, run.examples("train"), teacher, student.model),
                objective=SeqKD(SeqKDConfig(), config.decoding),
                examples=examples or run.examples("train"),
                optim=settings.optim,
                loop=settings.trainer,
            )
            stage.finish(f"best/{MANIFEST}")
    model = run.reload(stage.directory / "best", role, verified=True)
    return Made(model, stage.fingerprint, stage.digest)
