"""The settings of a run as one tree: what a recipe file holds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from brim.config.loading import Config, Incidental
from brim.errors import ConfigError
from brim.models.server_settings import ServedModel
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
from brim.training.reading import check_reading

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Config):
    """AdamW with linear warm-up."""

    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` keeps the moments of matrices in 8 bits; needs the extra `bitsandbytes`."""
    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of matrices; vectors (norms, biases) are never decayed."""
    warmup_steps: int = Field(0, ge=0)
    """Steps from zero to the peak."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up; `linear` and `cosine` end at zero."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Clip the global gradient norm; null for none."""


class LoopConfig(Config):
    """The training loop."""

    max_steps: int | None = Field(None, ge=1)
    """Steps: rollout batches, of one update each unless the objective says more; alternatively
    `num_epochs`."""
    num_epochs: float | None = Field(None, gt=0)
    """Passes over the training split; alternatively `max_steps`."""
    rollout_batch_size: int = Field(64, ge=1)
    """Prompts of one step, over all processes."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Tokens of one forward and backward pass: rows of similar length, with their prompts and
    padding. A matter of memory and speed only."""
    evaluate_every: int = Field(100, ge=1)
    """Steps between evaluations on the validation split; the last step is always evaluated."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of the model that is trained; null for what its config says. Objectives that compare
    the policy with the one that wrote (PPO, reused or old rollouts) train without."""
    gradient_checkpointing: bool = False
    """Keep only what enters each layer, and make the rest again for the gradient: less memory, and
    a third more work in an update."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay."""
    max_nonfinite_steps: int = Field(5, ge=1)
    """Skipped steps in a row after which the run stops."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp` leaves each process its part of the weights, gradients and moments of what is trained
    (torch's `fully_shard`); one process has all of them."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.max_steps is None) == (self.num_epochs is None):
            raise ValueError("give exactly one of max_steps and num_epochs")
        return self


def _check_moments(optim: OptimConfig, loop: LoopConfig) -> None:
    if optim.optimizer != "adamw" and loop.sharding != "none":
        raise ValueError(
            f"optim.optimizer: {optim.optimizer} cannot keep its moments in parts; set it to "
            "adamw, or trainer.sharding to none"
        )


class TrainerConfig(LoopConfig):
    """The loop of the objective's stage, and what holds for all stages of the run."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` is autocast: the weights and their optimizer stay in float32."""
    compile: bool = False
    """Have `torch.compile` translate both models' layers for rollouts, evaluations and the
    teacher's passes of the objective's stage. It takes half a minute or more at the start, and on a
    CPU a C++ compiler; the docs page on speed says what it gains."""
    monitors: Literal["off", "warn", "stop", "rollback"] = "warn"
    """What follows when a monitor sees learning from the student's own text go wrong: a warning; a
    stop behind the saved step; or the weights of the last healthy checkpoint at half the rate, up
    to three times, then a stop."""


class SupervisedConfig(Config):
    """A stage of cross-entropy training: the teacher's own, or the student's pre-distillation."""

    optim: OptimConfig = OptimConfig(lr=1e-3)
    """Optimizer of this stage."""
    trainer: LoopConfig
    """Loop of this stage."""

    @model_validator(mode="after")
    def _whole_moments(self) -> Self:
        _check_moments(self.optim, self.trainer)
        return self


class TeacherConfig(ServedModel):
    """The model whose logits are the Q-values."""

    loaded = ("device", "batch_tokens", "sharding", "seed", "train", "quantization")

    device: str | None = None
    """Where the teacher is, such as `cuda:1` or `cpu`; null for where the student is."""
    reads: Literal["tokens", "text"] = "tokens"
    """What it reads of the student's writing: the tokens, which the two must share, or the text, in
    tokens of its own, for a student of another tokenizer."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens of one pass of the teacher: rows of similar length, with their prompts and padding. A
    matter of memory and speed only."""
    sharding: Literal["none", "fsdp", "offload"] = "none"
    """`fsdp` leaves each process its part of the teacher's weights, which it reads layer by layer;
    `offload` keeps the parts in main memory, for one process too. One process has all of `fsdp`."""
    seed: int | None = Field(None, ge=0)
    """Of the teacher's first weights and training; null for the run's. With one set, runs of
    several seeds share a teacher, as the paper's do."""
    train: SupervisedConfig | None = None
    """Train or fine-tune the teacher on the task's targets first; null to take it as it is."""
    quantization: Quantization | None = None
    """Quantize the teacher as it is loaded; null for weights of `dtype`. Needs `path`, and no
    `train`."""

    @model_validator(mode="after")
    def _quantized_as_loaded(self) -> Self:
        if self.quantization is not None and self.path is None:
            raise ValueError("quantization is for a loaded model (path); leave it out beside build")
        if self.quantization is not None and self.train is not None:
            raise ValueError(
                "quantized weights cannot be trained; set train or quantization to null"
            )
        return self

    @model_validator(mode="after")
    def _sharded_on_the_devices_of_processes(self) -> Self:
        if self.sharding != "none" and self.device is not None:
            raise ValueError("device: a sharded teacher is where its processes are; set it to null")
        if self.sharding != "none" and self.quantization is not None:
            raise ValueError(
                "quantized weights cannot be sharded; set sharding to none or quantization to null"
            )
        return self


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
    """Picks the best checkpoint of the objective: one of the task's metrics, `return` or
    `expected_return`; null for the first of the task's metrics (`return` without targets)."""
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


# What needs all of a teacher's logits -> what to choose instead.
_INSTEAD = {
    "q_centering=policy": "choose objective.q_centering=logsumexp",
    "immediate=expected": "choose objective.immediate=sampled; for anchored also "
    "objective.expected_regrets=false",
    "expected_regrets=true": "choose objective.expected_regrets=false",
}
_OTHER_METHODS = "choose llmr, brim, anchored, ppo_llmr, ppo_brim or seqkd"


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
    if (setting := objective.whole_distribution) is not None:
        raise ValueError(
            f"objective.{setting}: needs all of the teacher's logits, and a server gives two "
            f"numbers a token; {_INSTEAD.get(setting, _OTHER_METHODS)}"
        )
    if evaluation.stages and evaluation.decoding.strategy == "beam":
        raise ValueError(
            "evaluation.stages: a teacher behind a server does not search with beams; set it to "
            "false, or evaluation.decoding.strategy to greedy"
        )


class RunConfig(Config):
    """A run: distill `teacher` into `student` on `task` by `objective`."""

    description: Annotated[str, Incidental] = ""
    """One line for `brim recipes`."""
    seed: int = Field(0, ge=0)
    """Every random stream of the run is derived from it."""
    task: AnyTask
    """Data and metrics."""
    teacher: TeacherConfig
    """The model whose logits are the Q-values."""
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

    @model_validator(mode="after")
    def _server_suffices(self) -> Self:
        if self.teacher.server is not None:
            _check_behind_server(self.teacher, self.student, self.objective, self.evaluation)
        return self

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if isinstance(self.task, Files) and self.task.train is None:
            raise ValueError("task.train: a run needs training data; name a file or data set")
        return self

    @model_validator(mode="after")
    def _measured(self) -> Self:
        metric, evaluation = self.evaluation.metric, self.evaluation
        choices = (*self.task.metrics, "return", "expected_return")
        if metric is not None and metric not in choices:
            raise ValueError(
                f"evaluation.metric: {metric} is not measured on this task; "
                f"choose one of {', '.join(choices)}"
            )
        if metric in ("return", "expected_return") and not evaluation.returns:
            raise ValueError(f"evaluation.metric: {metric} needs evaluation.returns=true")
        if metric == "expected_return" and not evaluation.expected_returns:
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
        _check_moments(self.optim, self.trainer)
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
        """Check that each of so many processes has a prompt of a step.

        Raises:
            ConfigError: there are too few.
        """
        if self.trainer.rollout_batch_size < number:
            raise ConfigError(
                f"trainer.rollout_batch_size: {self.trainer.rollout_batch_size} prompts are too "
                f"few for {number} processes; raise it"
            )

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
