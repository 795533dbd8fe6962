"""The one loop: collect, loss, update. Methods differ in their objective, never here.

A step collects one rollout batch and makes one update of it, or as many as the objective asks for.
It is a pure function of (weights, optimizer state, seed, step number): data order, rollouts and
dropout draw from counter-based streams. That is why a run resumed at any step reaches the same
bits, and why a checkpoint holds no random state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import TypeAdapter
from torch import Tensor

from brim.errors import BrimError, MonitorError, NonFiniteError, RunError, first_line
from brim.examples import Example
from brim.models import LanguageModel, Teacher, load_model
from brim.objectives.base import Objective
from brim.seeding import batch_positions, derive_seed, example_index
from brim.support.files import atomic_write_json, sha256_file
from brim.support.seals import LOGS, MANIFEST, Record, find_damage, seal
from brim.support.timing import phases, timed
from brim.training.callbacks import ASKED, Callbacks, CallbackState, Event
from brim.training.checkpoints import (
    STATE,
    TrainerState,
    check_processes,
    finish_replacing,
    replace_directory,
    save_checkpoint,
    what_is_kept,
)
from brim.training.evaluation import Evaluation
from brim.training.loop_settings import LoopConfig, OptimConfig
from brim.training.monitors import MAX_ROLLBACKS, Monitors
from brim.training.optimizer import count_bytes, count_steps, learning_rate
from brim.training.pace import Pace
from brim.training.resuming import (
    Interrupted,
    find_start,
    mend,
    saved_when_away,
    warn_of_the_untrained,
)
from brim.training.tracking import Tracker
from brim.training.updates import Updater, UpdaterState, name_suspects, seeded, text_sums
from brim.types import Batch

logger = logging.getLogger(__name__)

Evaluate = Callable[[LanguageModel], Evaluation]


@dataclass
class Trainer:
    """Trains `student` in `directory` and keeps its best checkpoint in `directory/best`.

    Attributes:
        student: the model that is trained, in place.
        teacher: the model that scores; None for objectives without one.
        objective: whose text is learned from, and what credit each token gets.
        examples: the training split.
        evaluate: decodes and scores the validation split.
        metric: the score that picks the best checkpoint.
        optim, settings: of the optimizer and the loop.
        directory: the run directory.
        accelerator: devices, processes, precision.
        tracker: receives the metrics of each step, on the main process.
        seed: of every random stream.
        load: reads the student of a checkpoint.
        callbacks: called after each step, evaluation and save; may end the training.
        monitors: watch it, and say what follows from an alarm.
        num_samples: validation predictions logged at each evaluation.
        other_processes: resume from a checkpoint of another number of processes.
        keys: the place of `optim` and `trainer` in the settings, such as `student.predistill.`.
    """

    student: LanguageModel
    teacher: Teacher | None
    objective: Objective
    examples: Sequence[Example]
    evaluate: Evaluate
    metric: str
    optim: OptimConfig
    settings: LoopConfig
    directory: Path
    accelerator: Accelerator
    tracker: Tracker
    max_prompt_tokens: int | None = None
    seed: int = 0
    load: Callable[[Path], LanguageModel] = load_model
    callbacks: Callbacks = field(default_factory=Callbacks)
    monitors: Monitors = field(default_factory=Monitors)
    num_samples: int = 8
    other_processes: bool = False
    keys: str = ""
    stop_requested: bool = False

    def __post_init__(self) -> None:
        self.updater = Updater(
            self.student, self.teacher, self.objective, self.optim, self.settings,
            self.accelerator, self.seed,
        )  # fmt: skip
        self.num_steps = count_steps(self.settings, len(self.examples))
        self.pace = Pace(self.settings, self.num_steps)
        self.state = TrainerState(seed=self.seed, monitors=self.monitors.state)

    def train(self) -> TrainerState:
        """Run from the newest checkpoint, or from the start, to the last step or an early end.

        Raises:
            NonFiniteError: too many steps in a row had to be skipped, or an update left weights,
                moments or logits that are not finite, none of which is saved.
            MonitorError: a monitor had the training stop; the last step is saved.
            CallbackError: a callback failed; the last step is saved.
            AwayError: the teacher's server gives no answer; of one process, so it is.
            Interrupted: `stop_requested` was set; the last complete step is saved.
        """
        self._resume()
        if self.state.best_step is None:
            self._evaluate()
            if self.monitors.mode == "rollback":
                self._save()
        while self.state.step < self.num_steps and self.state.stopped is None:
            with saved_when_away(self._save, self.accelerator.num_processes):
                self._train_step()
            step, last = self.state.step, self.state.step == self.num_steps
            if last or step % self.settings.evaluate_every == 0:
                self._evaluate()
            halt = self._answer_alarms(last)
            stop, failed, wish = self._any_process(
                self.stop_requested, self.callbacks.failure, self.callbacks.wish
            )
            if not last:
                self._end_early(wish)
            ended = last or self.state.stopped is not None
            if ended or stop or failed or halt or step % self.settings.save_every == 0:
                self._save()
            if halt and not failed:
                raise MonitorError(
                    f"{self.directory}: stopped after step {step}, which is saved: {halt}; the "
                    "same command goes on, without a stop for the same"
                )
            if stop or failed:
                break
        # Asked again: a signal or a failure may have come while the last step was saved.
        stop, failed = self._any_process(self.stop_requested, self.callbacks.failure)
        if failed:
            raise self.callbacks.error(self.directory, self.state.step)
        if stop:
            raise Interrupted(self.state.step)
        if self.accelerator.is_main_process:
            warn_of_the_untrained(self.directory, self.state, self.metric, self.keys)
        return self.state

    # -- one step ---------------------------------------------------------------------------

    def _train_step(self) -> None:
        step = self.state.step
        lr = learning_rate(self.optim, step, self.num_steps) * self.monitors.lr_factor
        self.updater.begin_step(step, lr)
        seed = derive_seed(self.seed, "dropout", step, self.accelerator.process_index)
        with phases() as seconds, timed("step"), seeded(seed, self.accelerator.device):
            batch = self._batch(step)
            rollout, rollout_sums = self.updater.collect(batch)
            cut = {"truncated_prompts": float(batch.num_truncated_prompts)}
            sums = self.updater.total({**rollout_sums, **cut, **text_sums(rollout)})
            with timed("update"):
                updates = self.updater.update(rollout, step, all(map(math.isfinite, sums.values())))
            nonfinite = self.updater.find_nonfinite(rollout)
        suspects = "" if updates.finite else name_suspects(rollout)
        self._count_step(updates.finite, suspects)
        per_token = 1 / max(updates.num_tokens, 1.0)
        metrics = {
            "train/loss": updates.sums["loss"] * per_token,
            **self.objective.describe({**sums, **updates.sums}),
            **{key: value * per_token for key, value in updates.sums.items() if "/" in key},
            "optim/grad_norm": updates.grad_norm / updates.count,
            "optim/lr": lr,
            "optim/updates": float(updates.count),
            "optim/skipped": float(not updates.finite),
            "data/truncated_prompts": sums["truncated_prompts"],
        }
        metrics |= self.monitors.observe(metrics, sums)
        self.pace.add_step(seconds["step"])
        timings = {f"time/{phase}": value for phase, value in seconds.items()}
        timings["time/tokens_per_second"] = sums["tokens"] / seconds["step"]
        if self.accelerator.is_main_process:
            self.tracker.log(self.state.step, metrics, timings)
            self._call("on_step", metrics=metrics)
        if nonfinite is not None:
            kept = what_is_kept(self.directory, self.state.best_step)
            raise NonFiniteError(
                f"{self.directory}: step {self.state.step} left {nonfinite} whose norm is not "
                f"finite; {kept}: lower {self.keys}optim.lr, or raise {self.keys}optim.eps"
            )
        self._give_up_on(suspects)

    def _count_step(self, finite: bool, suspects: str) -> None:
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            nonfinite_steps=0 if finite else self.state.nonfinite_steps + 1,
            num_processes=self.accelerator.num_processes,
        )
        if not finite:
            logger.warning(
                "step %d: non-finite loss, return or gradient; the update is skipped (examples %s)",
                *(self.state.step, suspects),
            )

    def _give_up_on(self, suspects: str) -> None:
        """Stop the run when the weights could not be updated too often in a row."""
        skipped = self.state.nonfinite_steps
        if skipped >= self.settings.max_nonfinite_steps:
            kept = what_is_kept(self.directory, self.state.best_step)
            raise NonFiniteError(
                f"{self.directory}: {skipped} steps in a row were not finite, up to step "
                f"{self.state.step} (examples {suspects}); {kept}: lower {self.keys}optim.lr"
                f"{'' if self.keys else ' or decoding.temperature'}, or check those examples"
            )

    def _batch(self, step: int) -> Batch:
        """This process's share of the prompts of a step."""
        positions = batch_positions(step, self.settings.rollout_batch_size)
        share = positions[self.accelerator.process_index :: self.accelerator.num_processes]
        rows = [example_index(p, len(self.examples), self.seed) for p in share]
        batch = self.student.encode(
            [self.examples[row] for row in rows],
            max_tokens=self.max_prompt_tokens,
            seeds=[derive_seed(self.seed, "rollout", position) for position in share],
        )
        return batch.to(self.accelerator.device)

    def _any_process(self, *flags: object) -> list[bool]:
        """Which of the flags are set on any process."""
        sums = {str(i): float(bool(flag)) for i, flag in enumerate(flags)}
        return [total > 0 for total in self.updater.total(sums).values()]

    # -- evaluation, log, checkpoints -------------------------------------------------------

    def _measured(self, what: str, work: Callable[[], None]) -> None:
        seconds = self.pace.measure(what, work)
        if self.accelerator.is_main_process:
            self.tracker.log(self.state.step, {}, {f"time/{what}": seconds})

    def _evaluate(self) -> None:
        self._measured("evaluation", self._evaluate_now)

    def _save(self) -> None:
        self._measured("save", self._save_now)

    def _evaluate_now(self) -> None:
        evaluation = self.updater.evaluate(self.evaluate)
        self.state = self.state.evaluated(evaluation.score_of(self.metric))
        if self.state.best_step == self.state.step:
            weights = self.updater.weights()
            if self.accelerator.is_main_process:
                self.pace.measure("best", lambda: self._write_best(weights))
        values = {f"eval/{k}": s.value for k, s in evaluation.scores.items()}
        values |= self.monitors.evaluate(evaluation.scores)
        if self.accelerator.is_main_process:
            self.tracker.log(self.state.step, values)
            samples = [p.as_dict() for p in evaluation.predictions[: self.num_samples]]
            self.tracker.log_samples(self.state.step, samples)
        self._call("on_evaluate", scores=evaluation.scores, predictions=evaluation.predictions)

    def _write_best(self, weights: Mapping[str, Tensor] | None) -> None:
        def write(path: Path) -> None:
            self.student.save(path, state_dict=weights)
            seal(path, {"step": self.state.best_step, "seed": self.seed})

        best, own = self.directory / "best", weights or self.student.model.state_dict()
        replace_directory(best, write, count_bytes(own.values()), keep=True)
        self.state = replace(self.state, best_sha256=sha256_file(best / MANIFEST))

    # -- callbacks, early ends --------------------------------------------------------------

    def _call(self, event: Event, **seen: Any) -> None:
        if self.accelerator.is_main_process:
            step, best = self.state.step, (self.state.best_step, self.state.best_score)
            state = CallbackState(self.directory, step, self.num_steps, *best, **seen)
            self.callbacks.call(event, state)

    def _end_early(self, wish: bool) -> None:
        """End the training here, with an evaluation, where a callback or its patience says so."""
        patience = self.settings.patience
        if wish:
            if self.state.step % self.settings.evaluate_every:
                self._evaluate()
            self.state = replace(self.state, stopped=self.callbacks.wish or ASKED)
        elif patience is not None and self.state.stale >= patience:
            why = f"no better {self.metric} in {patience} evaluations"
            self.state = replace(self.state, stopped=why)

    # -- alarms -----------------------------------------------------------------------------

    def _answer_alarms(self, last: bool) -> str | None:
        """Warn of new alarms, and roll back if that is asked for; why to stop, if that is."""
        alarms, watch = self.monitors.take(), self.monitors
        for alarm in alarms if self.accelerator.is_main_process else ():
            logger.warning("%s: step %d: %s", self.directory, self.state.step, alarm)
        if not alarms or last or watch.mode == "warn":
            return None
        if watch.mode == "rollback" and watch.state.num_rollbacks < MAX_ROLLBACKS:
            damage = self._roll_back()
            if damage is None:
                return None
            alarms.append(damage)
        return "; ".join(alarms)

    def _roll_back(self) -> str | None:
        """Go on from the last healthy checkpoint's weights and moments, more slowly; why not.

        Steps go on to count, with new prompts, and the logs keep what has been; what is gone back
        to is saved as this step's, so a resume needs nothing that a run does not have anyway.
        """
        step, healthy = self.state.step, self.monitors.state.healthy_step
        source = self.directory / "checkpoints" / f"step-{healthy}"
        damage = find_damage(source)
        self.accelerator.wait_for_everyone()
        if damage is not None:
            return f"{source} cannot be gone back to: {damage}"
        self.updater.restore(source, self.load)
        self.monitors.roll_back()
        if self.accelerator.is_main_process:
            self.tracker.log(step, {"monitor/rolled_back_to": float(healthy or 0)})
            logger.warning(
                "%s: step %d goes on from the weights of step %d, with optim.lr times %g",
                *(self.directory, step, healthy, self.monitors.lr_factor),
            )
        self._save()
        return None

    def _save_now(self) -> None:
        if self.state.step % self.settings.save_every == 0:  # of a stop the monitors know nothing
            self.monitors.note_checkpoint(self.state.step)
        state = self.updater.state()
        if self.accelerator.is_main_process:
            logs = self.tracker.sync()
            path = save_checkpoint(
                self.directory / "checkpoints",
                self.state.step,
                lambda path: self._write_checkpoint(path, state, logs),
                keep=self.settings.keep_checkpoints,
                spare=self.monitors.spare,
                num_bytes=self.updater.num_bytes(state),
            )
            self._call("on_save", checkpoint=path)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(
        self, path: Path, state: UpdaterState, logs: Mapping[str, Record]
    ) -> None:
        self.updater.save(path, state)
        atomic_write_json(path / STATE, asdict(self.state))
        atomic_write_json(path / LOGS, logs)

    def _resume(self) -> None:
        """Continue from the newest checkpoint with which everything is whole, if there is one."""
        if self.accelerator.is_main_process:
            finish_replacing(self.directory / "best")
        self.accelerator.wait_for_everyone()
        start = find_start(self.directory)
        self.accelerator.wait_for_everyone()  # all have looked before anything changes
        if start is None:
            if self.accelerator.is_main_process:
                self.tracker.rewind(-1)
            return
        try:
            self.state = TypeAdapter(TrainerState).validate_python(start.state)
            self.monitors.state = self.state.monitors
            if not self.other_processes:
                now = self.accelerator.num_processes
                check_processes(start.path, self.state.num_processes, now)
            self.updater.restore(start.path, self.load)
        except BrimError:
            raise
        except Exception as error:  # whatever files that only look like ours make libraries say
            raise RunError(
                f"{start.path}: holds no state of this training ({first_line(error)}); "
                "delete it to go on from the checkpoint before"
            ) from error
        if self.state.step > self.num_steps:
            raise RunError(
                f"{start.path}: the checkpoint is past the {self.num_steps} steps asked for; "
                "choose another --out"
            )
        if self.accelerator.is_main_process:
            keep, spare = self.settings.keep_checkpoints, self.monitors.spare
            mend(self.directory, start, keep=keep, spare=spare)
            self.tracker.rewind(self.state.step, start.logs)
