"""The settings of a run as one tree: what a recipe file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from brim.config.loading import Config, Incidental
from brim.config.yaml import Document
from brim.errors import ConfigError
from brim.models.settings import (
    Decoding,
    EvaluationDecoding,
    Lora,
    ModelSettings,
    Quantization,
    TokenizerSettings,
)
from brim.objectives import ObjectiveConfig
from brim.objectives.method import MethodConfig
from brim.objectives.settings import SeqKDConfig
from brim.tasks import AnyTask, Files
from brim.training.loop_settings import (
    LoopConfig,
    OptimConfig,
    SupervisedConfig,
    TrainerConfig,
    check_moments,
)
from brim.training.reading import check_reading, check_two_numbers
from brim.training.teacher_settings import NamedTeacher, OrList, TeacherConfig

# Scores by the teacher, which pick a checkpoint as the task's metrics do.
OF_GREEDY_TEXT = ("return", "regret_per_token")
OF_SAMPLES = ("expected_return", "expected_regret_per_token")


class StudentConfig(ModelSettings):
    """The model that is trained; it shares the teacher's tokenizer unless that reads text."""

    sources = ("path", "build", "keep_layers")

    keep_layers: int | None = Field(None, ge=1)
    """Make the student from this many of the teacher's layers, evenly spaced."""
    tokenizer: TokenizerSettings | None = None
    """Tokenizer to train, or to load (`path`), for a student from scratch, beside
    `teacher.reads: text`; null for the teacher's."""
    predistill: SupervisedConfig | None = None
    """Train on the teacher's outputs before the objective; null to start as it is."""
    lora: Lora | None = None
    """Train adapters in place of the weights; null to train all weights. Needs the extra `lora`."""

    @model_validator(mode="after")
    def _tokenizer_with_build(self) -> Self:
        if self.tokenizer is not None and self.build is None:
            raise ValueError(
                "tokenizer is for a student from scratch (build), any other has one; leave it out"
            )
        return self


class EvaluationConfig(Config):
    """What is measured on the validation and test splits."""

    decoding: EvaluationDecoding = EvaluationDecoding()
    """How the text that is scored is written."""
    batch_tokens: int = Field(32768, ge=1)
    """Tokens that generation holds at once, see `decoding.batch_tokens`."""
    max_validation_examples: int | None = Field(None, ge=1)
    """Only the first so many during training; null for all."""
    metric: str | None = None
    """Picks the best checkpoint of the objective: one of the task's metrics, `return`,
    `expected_return`, or of either its `regret_per_token`; null for the first of the task's metrics
    (`return` without targets)."""
    returns: bool = True
    """Also report the teacher's return (Eq 10) of the decoded text."""
    expected_returns: bool = True
    """Also report the return of text sampled as the run's `decoding` says: what reinforcement
    learning maximizes (Eq 3), at the price of decoding everything twice. Needs `returns`."""
    stages: bool = True
    """`brim train` also tests the teacher and the student before the objective, unless another run
    that shares them has, and prints all three: at most two more evaluations of the test split."""
    num_resamples: int = Field(1000, ge=100)
    """Bootstrap resamples of an interval."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Coverage of an interval."""
    num_samples: int = Field(8, ge=0)
    """Validation samples written to `samples.jsonl` at each evaluation."""


class TrackingConfig(Config):
    """Where metrics go besides `metrics.jsonl`."""

    backends: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Optional trackers; each needs the extra of its name."""
    project: str = "brim"
    """Project name for trackers that have one."""


def _check_behind_server(
    teacher: TeacherConfig,
    student: StudentConfig,
    objective: MethodConfig,
    evaluation: EvaluationConfig,
) -> None:
    """Refuse what a teacher behind a server cannot do, whatever server it is."""
    if student.keep_layers is not None:
        raise ValueError(
            "student.keep_layers: a server gives no layers; give a student of its own (path, build)"
        )
    if student.path is None and teacher.tokenizer is None:
        raise ValueError(
            "teacher.tokenizer: a student from scratch needs the tokenizer of the model behind the "
            "server; name its folder or hub name as teacher.tokenizer.path"
        )
    if teacher.reads == "text" and teacher.tokenizer is None:
        raise ValueError(
            "teacher.tokenizer: a teacher that reads text reads it in tokens of its own; name the "
            "folder or hub name of the model behind the server as teacher.tokenizer.path"
        )
    check_two_numbers(
        objective, "needs all of the teacher's logits, and a server gives two numbers a token"
    )
    if evaluation.stages and evaluation.decoding.strategy == "beam":
        raise ValueError(
            "evaluation.stages: a teacher behind a server does not search with beams; set it to "
            "false, or evaluation.decoding.strategy to greedy"
        )


def _check_several(
    teachers: Sequence[NamedTeacher],
    student: StudentConfig,
    objective: MethodConfig,
    column: str | None,
) -> None:
    """Refuse what several teachers cannot do together."""
    if student.keep_layers is not None:
        raise ValueError("student.keep_layers: of which of several teachers? Give it a path")
    served = [teacher.model for teacher in teachers if teacher.server is not None]
    if column is None:
        if served:
            raise ValueError(
                f"teacher: {served[0]} is behind a server, which shows two numbers a token; to "
                "average Q-values takes all of them. Load it (path), or name a teacher for each "
                "example (task.teacher_column)"
            )
        return
    names = [teacher.name for teacher in teachers]
    if None in names or len({*names}) < len(names):
        raise ValueError("teacher: each of several needs a name of its own for task.teacher_column")
    if any(teacher.weight != 1 for teacher in teachers):
        raise ValueError("teacher: weights are for an average; leave out task.teacher_column")
    check_two_numbers(
        objective,
        "needs the distribution of one teacher, and with task.teacher_column examples have several",
    )


class RunConfig(Config):
    """A run: distill `teacher` into `student` on `task` by `objective`."""

    description: Annotated[str, Incidental] = ""
    """One line for `brim recipes`."""
    seed: int = Field(0, ge=0)
    """Every random stream of the run is derived from it."""
    task: AnyTask
    """Data and metrics."""
    teacher: Annotated[TeacherConfig, OrList()]
    """The model whose logits are the Q-values, or a list of several."""
    student: StudentConfig
    """The model that is trained."""
    objective: ObjectiveConfig = SeqKDConfig()
    """The method; `name` says which."""
    decoding: Decoding = Decoding()
    """How rollouts are written, and token limits."""
    optim: OptimConfig = OptimConfig()
    """Optimizer of the objective's stage."""
    trainer: TrainerConfig
    """Loop of the objective's stage."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Metrics, intervals, checkpoint choice."""
    tracking: Annotated[TrackingConfig, Incidental] = TrackingConfig()
    """Optional trackers."""

    @classmethod
    def expand(cls, document: Document) -> None:
        """Make a list of teachers the mapping that it stands for."""
        if isinstance(document.data.get("teacher"), list):
            document.data["teacher"] = {"several": document.data["teacher"]}
            moved = {key: at for key, at in document.origins.items() if key[:1] == ("teacher",)}
            document.origins |= {("teacher", "several", *key[1:]): at for key, at in moved.items()}

    @model_validator(mode="after")
    def _server_suffices(self) -> Self:
        if self.teacher.server is not None:
            _check_behind_server(self.teacher, self.student, self.objective, self.evaluation)
        return self

    @model_validator(mode="after")
    def _several_suffice(self) -> Self:
        column = getattr(self.task, "teacher_column", None)
        if column is not None and self.teacher.several is None:
            raise ValueError("task.teacher_column: there is one teacher; leave it out")
        if self.teacher.several is not None:
            _check_several(self.teacher.several, self.student, self.objective, column)
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if isinstance(self.task, Files) and self.task.train is None:
            raise ValueError("task.train: a run needs training data; name a file or data set")
        return self

    @model_validator(mode="after")
    def _measured(self) -> Self:
        metric, evaluation = self.evaluation.metric, self.evaluation
        choices = (*self.task.metrics, *OF_GREEDY_TEXT, *OF_SAMPLES)
        if metric is not None and metric not in choices:
            raise ValueError(
                f"evaluation.metric: {metric} is not measured on this task; "
                f"choose one of {', '.join(choices)}"
            )
        if metric in (*OF_GREEDY_TEXT, *OF_SAMPLES) and not evaluation.returns:
            raise ValueError(f"evaluation.metric: {metric} needs evaluation.returns=true")
        if metric in OF_SAMPLES and not evaluation.expected_returns:
            raise ValueError(f"evaluation.metric: {metric} needs evaluation.expected_returns=true")
        return self

    @model_validator(mode="after")
    def _no_dropout_between_policies(self) -> Self:
        if self.trainer.dropout and self.objective.compares_policies:
            raise ValueError(
                "trainer.dropout: has no effect where updates compare the policy with the one that "
                "wrote, as PPO and reused or old rollouts do; set it to 0 or null"
            )
        return self

    @model_validator(mode="after")
    def _readable(self) -> Self:
        check_reading(
            self.teacher.reads,
            self.objective,
            own_tokenizer=self.student.tokenizer is not None,
            keeps_layers=self.student.keep_layers is not None,
        )
        return self

    @model_validator(mode="after")
    def _nothing_of_parts(self) -> Self:
        if self.teacher.sharding != "none" and self.student.keep_layers is not None:
            raise ValueError(
                "student.keep_layers: cannot copy layers of a sharded teacher; give a student of "
                "its own, or set teacher.sharding to none"
            )
        loops: list[LoopConfig] = [self.trainer]
        if self.student.predistill is not None:
            loops.append(self.student.predistill.trainer)
        check_moments(self.optim, self.trainer)
        in_parts = any(loop.sharding != "none" for loop in loops)
        if self.trainer.compile and (in_parts or self.teacher.sharding != "none"):
            raise ValueError(
                "trainer.compile: cannot translate layers of sharded models; set it to false, or "
                "sharding to none"
            )
        if self.decoding.engine == "vllm" and self.trainer.sharding != "none":
            raise ValueError(
                "decoding.engine: vllm cannot be handed the weights of a sharded student; choose "
                "loop, or set trainer.sharding to none"
            )
        if self.student.lora is not None and in_parts:
            raise ValueError(
                "student.lora: adapters cannot be trained in parts; set trainer.sharding to none"
            )
        return self

    def check_processes(self, number: int) -> None:
        """Check that each of so many processes has a prompt of a step, in each stage.

        Raises:
            ConfigError: there are too few.
        """
        for _, keys, loop, _ in self.stages():
            if loop.rollout_batch_size < number:
                raise ConfigError(
                    f"{keys}trainer.rollout_batch_size: {loop.rollout_batch_size} prompts are too "
                    f"few for {number} processes; raise it"
                )

    def stages(self) -> Iterator[tuple[str, str, LoopConfig, OptimConfig]]:
        """Return the stages that train a model: name, place in the settings, loop and optimizer."""
        train, predistill = self.teacher.train, self.student.predistill
        if train is not None:
            yield "teacher", "teacher.train.", train.trainer, train.optim
        if predistill is not None:
            yield "predistill", "student.predistill.", predistill.trainer, predistill.optim
        yield self.objective.name, "", self.trainer, self.optim

    def check_quantized(self, teacher: Quantization | None, student: Quantization | None) -> None:
        """Refuse what models of few bits a weight cannot do, loaded so or stored so.

        Args:
            teacher: how the teacher's weights are kept; None for all of their bits.
            student: the same of a student that is loaded.

        Raises:
            ConfigError: names the setting.
        """
        if student is not None:
            raise ConfigError(
                f"student.path: {self.student.path} is stored in {student}, and quantized weights "
                "cannot be trained; give the model as it was before"
            )
        if teacher is None:
            return
        if self.student.keep_layers is not None:
            raise ConfigError(
                "student.keep_layers: quantized layers cannot be trained; give a student of its "
                "own, or a teacher that is not quantized"
            )
        if self.teacher.train is not None:
            raise ConfigError(
                f"teacher.train: {self.teacher.path} is stored in {teacher}, and quantized weights "
                "cannot be trained; set it to null, or give the model as it was before"
            )
        if self.teacher.sharding != "none":
            raise ConfigError(
                f"teacher.sharding: {self.teacher.path} is stored in {teacher}, and quantized "
                "weights cannot be sharded; set it to none"
            )

    @model_validator(mode="after")
    def _a_row_for_each_minibatch(self) -> Self:
        rows = self.trainer.rollout_batch_size * getattr(self.objective, "num_generations", 1)
        if getattr(self.objective, "num_minibatches", 1) > rows:
            raise ValueError(
                f"objective.num_minibatches: more than the {rows} rows of a rollout batch; lower it"
            )
        return self
