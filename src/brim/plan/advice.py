"""What to change first, so that a run takes fewer hours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from brim.plan.hours import Advice, Part, total_hours
from brim.plan.plan import GIB, Plan, Planner, plan
from brim.plan.render import decimal
from brim.training.loop_settings import LoopConfig
from brim.training.predictions import BLOCK
from brim.training.settings import RunConfig

# Of all hours: what saves less is not worth a word.
_WORTH = 0.05
# Of a stage: what its evaluations, or its saves, may take, and how many of each should stay.
_ALLOWED, _STAY = 0.05, 5
_ROUND = (1, 2, 5)
_FEWEST = 50  # examples of an evaluation


@dataclass(frozen=True)
class Seen:
    """What advice depends on beside seconds.

    Attributes:
        truncated: by stage, the share of completions that met the limit of tokens.
        num_validation: examples of an evaluation during training.
        on_gpu: whether the models are on one.
    """

    truncated: Mapping[str, float]
    num_validation: int
    on_gpu: bool


def advise(planner: Planner, parts: Sequence[Part], seen: Seen) -> tuple[Advice, ...]:
    """Return what to change first: what saves most, and nothing that saves next to nothing."""
    config, least = planner.config, _WORTH * total_hours(parts)
    found = [*_of_the_run(planner, parts, seen)]
    for name, keys, loop, _ in config.stages():
        own = [part for part in parts if part.stage == name]
        if total_hours(own):
            found += [*_of_loop(name, keys, loop, own, seen), *_of_steps(planner, name, own, seen)]
            found += _of_checkpointing(config, name, keys, loop, own)
    worth = (advice for advice in found if advice.hours > least)
    return tuple(sorted(worth, key=lambda advice: -advice.hours))


def _of_loop(
    name: str, keys: str, loop: LoopConfig, own: Sequence[Part], seen: Seen
) -> Iterator[Advice]:
    """Of evaluations and saves that are too many."""
    beside = {"evaluation": "evaluate_every", "save": "save_every"}
    rest = total_hours([part for part in own if part.what not in beside])
    for part in own:
        if part.what not in beside or not part.hours or not part.count:
            continue
        every = getattr(loop, beside[part.what])
        why = f"{name}: {part.what}s take {part.hours / total_hours(own):.0%}"
        wanted = _rounded(every * part.hours / (_ALLOWED * rest)) if rest else every
        count = part.count - (part.what == "evaluation")  # the one before the first step stays
        rarer = min(wanted, _rounded(every * count / _STAY, up=False))
        if rarer > every:
            saved = part.seconds * count * (1 - every / rarer) / 3600
            setting = f"{keys}trainer.{beside[part.what]}"
            yield Advice(setting, f"{every:,}", f"{rarer:,}", saved, False, why)
        elif part.what == "evaluation" and part.hours > _ALLOWED * rest:
            count, fewer = seen.num_validation, max(_FEWEST, _rounded(seen.num_validation / 4))
            if fewer >= count:
                continue
            saved, setting = part.hours * (1 - fewer / count), "evaluation.max_validation_examples"
            yield Advice(setting, f"{count:,}", f"{fewer:,}", saved, False, why)


def _of_steps(planner: Planner, name: str, own: Sequence[Part], seen: Seen) -> Iterator[Advice]:
    """Of writing, of the teacher, and of the update."""
    config = planner.config
    hours = {part.what: part.hours or 0.0 for part in own}
    writing, reading, update = (hours.get(what, 0.0) for what in ("rollout", "teacher", "update"))

    def share(what: str, took: float) -> str:
        return f"{name}: {what} takes {took / total_hours(own):.0%}"

    if writing:
        decoding, truncated = config.decoding, seen.truncated.get(name, 0.0)
        why, limit = share("writing", writing), decoding.max_tokens
        if truncated and limit > 1:
            why_shorter = f"{why}, {truncated:.0%} of the texts meet the limit"
            half = limit // 2
            saved = writing * (1 - half / limit)
            yield Advice("decoding.max_tokens", str(limit), str(half), saved, True, why_shorter)
        rows = config.trainer.rollout_batch_size * config.objective.passes().generations
        if (number := -(-rows // planner.fitting(decoding.batch_tokens).rows)) > 1:
            now, saved = decoding.batch_tokens, writing * (1 - 1 / number)
            why_at_once = f"{why}, {number} batches one after the other"
            yield Advice(
                "decoding.batch_tokens", str(now), str(number * now), saved, True, why_at_once
            )
        if seen.on_gpu and decoding.engine == "loop" and config.trainer.sharding == "none":
            yield Advice("decoding.engine", "loop", "vllm", writing, True, why)
    if reading and config.teacher.server is not None:
        now, why = config.teacher.requests.concurrency, share("waiting for the teacher", reading)
        setting = "teacher.requests.concurrency"
        yield Advice(setting, str(now), str(2 * now), reading / 2, True, why)
    elif reading and seen.on_gpu and config.teacher.path and config.teacher.dtype == "float32":
        why = share("the teacher", reading)
        yield Advice("teacher.dtype", "float32", "bfloat16", reading / 2, True, why)
    if seen.on_gpu and config.trainer.precision == "float32":
        why = share("the update", update)
        yield Advice("trainer.precision", "float32", "bfloat16", update / 2, True, why)


def _of_checkpointing(
    config: RunConfig, name: str, keys: str, loop: LoopConfig, own: Sequence[Part]
) -> Iterator[Advice]:
    """Of activations that are made twice, by the planned operations of both ways."""
    update = total_hours([part for part in own if part.what == "update"])
    if not loop.gradient_checkpointing or not update:
        return
    setting = f"{keys}trainer.gradient_checkpointing"
    kept = plan(with_settings(config, setting, False))
    for before, after in zip(plan(config).stages, kept.stages, strict=True):
        if before.name == name and before.operations and after.operations:
            saved = update * (1 - after.operations.update / before.operations.update)
            memory = decimal(after.memory["update"].total / GIB)
            why = f"{name}: layers are passed twice; without it takes {memory} GiB"
            yield Advice(setting, "true", "false", saved, False, why)


def _of_the_run(planner: Planner, parts: Sequence[Part], seen: Seen) -> Iterator[Advice]:
    """Of what is written outside of steps."""
    evaluation = planner.config.evaluation
    tests = [part for part in parts if part.stage == "test"]
    if evaluation.stages and len(tests) > 1:
        # The run's own is the first.
        saved = total_hours(tests[1:])
        why = "teacher and student are tested too"
        yield Advice("evaluation.stages", "true", "false", saved, False, why)
    evaluating = total_hours([*tests, *(part for part in parts if part.what == "evaluation")])
    if (
        evaluation.expected_returns
        and evaluation.returns
        and evaluation.metric != "expected_return"
    ):
        why = "evaluations and tests write everything twice"
        yield Advice("evaluation.expected_returns", "true", "false", evaluating / 2, True, why)
    rows, whole = planner.evaluated.rows, min(BLOCK, seen.num_validation)
    written = evaluating + total_hours([p for p in parts if p.stage == "teacher_outputs"])
    if (number := -(-whole // rows)) > 1:
        now, why = evaluation.batch_tokens, f"{number} batches of {rows} texts, one after the other"
        saved, setting = written * (1 - 1 / number), "evaluation.batch_tokens"
        yield Advice(setting, str(now), str(number * now), saved, True, why)


def memory_warnings(planned: Plan, planner: Planner, memory_bytes: int) -> Iterator[str]:
    """Warn of phases that need more than there is, and say what makes them smaller."""
    loops = {name: (keys, loop) for name, keys, loop, _ in planner.config.stages()}
    for stage in planned.stages:
        keys, loop = loops.get(stage.name, ("", planner.config.trainer))
        settings = {
            "update": (f"{keys}trainer.micro_batch_tokens", loop.micro_batch_tokens),
            "rollout": ("decoding.batch_tokens", planner.config.decoding.batch_tokens),
            "teacher": ("teacher.batch_tokens", planner.config.teacher.batch_tokens),
            "evaluation": ("evaluation.batch_tokens", planner.config.evaluation.batch_tokens),
        }
        settings["student"] = settings["update"]
        if stage.operations is None:
            settings["rollout"] = settings["evaluation"]
        for phase, memory in stage.memory.items():
            if memory.total <= memory_bytes:
                continue
            setting, now = settings[phase]
            off = phase == "update" and not loop.gradient_checkpointing
            more = f", or set {keys}trainer.gradient_checkpointing to true" if off else ""
            yield (
                f"{stage.name}: {phase} needs {memory.total / GIB:.1f} GiB where there are "
                f"{memory_bytes / GIB:.1f}: lower {setting} from {now:,} to {now // 2:,}{more}"
            )


def with_settings(config: RunConfig, setting: str, value: object) -> RunConfig:
    """Return the run with one setting changed; no other is looked at."""
    first, _, rest = setting.partition(".")
    part = getattr(config, first)
    changed = with_settings(part, rest, value) if rest else value
    return config.model_copy(update={first: changed})


def _rounded(value: float, *, up: bool = True) -> int:
    """1, 2 or 5 times a power of ten, not below `value`; or not above it."""
    if value <= 1:
        return 1
    power = 10 ** math.floor(math.log10(value))
    steps = [step * power for step in (*_ROUND, 10)]
    return int(min(s for s in steps if s >= value) if up else max(s for s in steps if s <= value))
