"""Train one model of a run: the trainer, with the run's settings, logs, progress and signals."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from brim.examples import Example
from brim.models import LanguageModel, Teacher, add_adapters
from brim.objectives.base import Objective
from brim.runs.inputs import RunInputs
from brim.runs.pairs import some_targets
from brim.runs.watched import Watched
from brim.seeding import derive_seed
from brim.support.seals import checkpoints_in
from brim.training.callbacks import Callbacks
from brim.training.evaluation import Evaluation, evaluate
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.monitors import Monitors, Reference
from brim.training.optimizer import count_steps
from brim.training.predictions import EvaluationSettings
from brim.training.tracking import Tracker
from brim.training.trainer import Trainer
from brim.training.updates import text_sums


def fit(
    run: RunInputs,
    stage: str,
    directory: Path,
    *,
    student: LanguageModel,
    teacher: Teacher | None,
    objective: Objective,
    examples: Sequence[Example],
    optim: OptimConfig,
    loop: LoopConfig,
    monitors: Monitors | None = None,
) -> None:
    """Train a model in a directory, resuming what is there; the rest is as in `Trainer`.

    Args:
        run: whose settings.
        stage: `teacher`, `predistill` or, for whichever method, `objective`: methods share data
            order and the rollouts' seeds.
        directory: of the training; the best checkpoint is in `directory/best`.
        student: the model that is trained.
        teacher: scores what the student writes; None without it.
        objective: the method.
        examples: the training split.
        optim: settings of the optimizer.
        loop: settings of the loop.
        monitors: watch the training; None for none.
    """
    config, lora = run.config, run.config.student.lora
    label = config.objective.name if stage == "objective" else stage
    role = config.teacher if stage == "teacher" else config.student
    if stage != "teacher" and lora is not None:
        seed = derive_seed(config.seed, "adapters", stage)
        add_adapters(student.model, lora, seed=seed)
    # Stages that runs share are picked alike in all of them.
    settings = evaluation_settings(run, greedy=stage != "objective")
    metric = run.metric() if stage == "objective" else run.supervised_metric()
    callbacks = run.callbacks if stage == "objective" else Callbacks()
    with (
        _tracker(run, stage, directory) as tracker,
        run.reporter.meter(label, count_steps(loop, len(examples))) as meter,
    ):
        trainer = Trainer(
            student=student,
            teacher=teacher,
            objective=objective,
            examples=examples,
            evaluate=lambda model: _validate(run, model, teacher, settings, watched),
            metric=metric,
            optim=optim,
            settings=loop,
            directory=directory,
            accelerator=run.accelerator,
            tracker=tracker,
            max_prompt_tokens=config.decoding.max_prompt_tokens,
            seed=derive_seed(run.seed_of(stage), "train", stage),
            load=lambda path: run.reload(path, role, verified=True),
            callbacks=callbacks,
            monitors=monitors or Monitors(),
            num_samples=config.evaluation.num_samples,
            other_processes=run.other_processes,
            keys=next(keys for name, keys, *_ in config.stages() if name == label),
        )
        watched = Watched(meter, metric, objective, trainer.pace)
        callbacks.add(watched)
        with _stop_on_signals(trainer, label, run.reporter.say):
            state = trainer.train()
    if state.stopped is not None:
        run.reporter.say(f"{label}: ended at step {state.step:,}: {state.stopped}")
    run.accelerator.free_memory()


def measure_reference(
    run: RunInputs, student: LanguageModel, outputs: Sequence[Example] | None
) -> Reference | None:
    """Return what the text is like that the student is to write, of evenly spaced examples.

    Args:
        run: whose settings and data.
        student: whose tokens are counted.
        outputs: the training examples with what the teacher wrote; without them the training
            split's own references count, and None is returned where it has none.
    """
    decoding = run.config.decoding
    examples = some_targets(run.examples("train") if outputs is None else outputs, 256)
    if not examples:
        return None
    batch = student.encode(examples, max_tokens=decoding.max_prompt_tokens)
    texts = student.encode_targets(batch, max_tokens=decoding.max_tokens)
    sums = text_sums(replace(texts, by_student=torch.ones_like(texts.truncated)))
    return Reference(
        source="the references" if outputs is None else "the teacher",
        length=texts.num_tokens / len(texts),
        truncated=float(texts.truncated.float().mean()),
        repetition=sums["repeated"] / max(sums["ngrams"], 1.0),
    )


def _tracker(run: RunInputs, stage: str, directory: Path) -> Tracker:
    tracking = run.config.tracking
    return Tracker(
        directory,
        run=run.out,
        stage=stage,
        backends=tracking.backends if run.accelerator.is_main_process else (),
        run_name=directory.name,
        config=run.config.model_dump(mode="json"),
        project=tracking.project,
    )


def _validate(
    run: RunInputs,
    model: LanguageModel,
    teacher: Teacher | None,
    settings: EvaluationSettings,
    watched: Watched,
) -> Evaluation:
    examples = run.used("validation")
    return evaluate(
        model,
        examples,
        settings,
        teacher=teacher if run.config.evaluation.returns else None,
        num_resamples=100,  # a learning curve shows no intervals
        confidence=run.config.evaluation.confidence,
        advance=watched.evaluating(len(examples)),
    )


def evaluation_settings(run: RunInputs, *, greedy: bool = False) -> EvaluationSettings:
    """Return how an evaluation writes and measures; `greedy` whatever the settings say."""
    settings, decoding = run.config.evaluation, run.config.decoding
    chosen, own = settings.decoding, settings.batch_tokens
    sampled = decoding.model_copy(update={"batch_tokens": own})
    return EvaluationSettings(
        decoding.greedy(own) if greedy else chosen.build(decoding.max_tokens, own),
        num_samples=1 if greedy else chosen.num_samples,
        sampling=sampled if settings.expected_returns else None,
        metrics=tuple(run.task.metrics),
        max_prompt_tokens=decoding.max_prompt_tokens,
        seed=run.config.seed,
    )


@contextmanager
def _stop_on_signals(trainer: Trainer, label: str, say: Callable[[str], None]) -> Iterator[None]:
    """SIGINT and SIGTERM ask the trainer to stop after its step; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request(number: int, frame: object) -> None:
        saved = next(iter(checkpoints_in(trainer.directory / "checkpoints")), None)
        since = f"the start of {label}" if saved is None else f"step {saved}"
        if trainer.stop_requested:
            raise KeyboardInterrupt(f"stopped at once; the same command goes on from {since}")
        trainer.stop_requested = True
        announcement = (
            "saving after this step; press Ctrl-C again to stop at once (work since "
            f"{since} is lost)"
        )
        # From another thread: this one may be in the middle of writing a line.
        _thread.start_new_thread(say, (announcement,))

    old = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
