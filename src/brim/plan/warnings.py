"""What in a run's settings will probably not go as it was meant."""

from __future__ import annotations

from collections.abc import Iterator

from brim.optimization import count_steps, learning_rate
from brim.plan.shapes import ModelShape, Size
from brim.settings import LoopConfig, OptimConfig, RunConfig

# Tokens of a prompt where the recipe sets no limit.
UNLIMITED_PROMPT_TOKENS = 512


def settings_warnings(config: RunConfig, num_examples: int | None) -> Iterator[str]:
    """Of limits, of K and of warm-ups.

    Args:
        config: the run's settings.
        num_examples: of the training split; None if not known.
    """
    if config.decoding.max_prompt_tokens is None:
        yield (
            "decoding.max_prompt_tokens is not set: prompts are counted as "
            f"{UNLIMITED_PROMPT_TOKENS} tokens"
        )
    if num_examples is None:
        yield (
            "the number of training examples is not known: set task.max_train_examples to count "
            "what depends on it"
        )
    k, limit = getattr(config.objective, "k", 1), config.decoding.max_tokens
    if isinstance(k, int) and k > limit:
        yield f"objective.k is {k}, and completions have at most {limit} tokens: no block is full"
    for name, keys, loop, optim in training_stages(config):
        if loop.max_steps is not None or num_examples is not None:
            yield from _warmup_warnings(name, keys, count_steps(loop, num_examples or 0), optim)


def _warmup_warnings(name: str, keys: str, steps: int, optim: OptimConfig) -> Iterator[str]:
    """Of a warm-up that leaves less than a tenth of the steps at the full learning rate."""
    warmup = optim.warmup_steps
    if warmup == 0 or 10 * (steps - warmup + 1) >= steps:
        return
    longer = "longer than" if warmup > steps else "nearly all of"
    reached = learning_rate(optim, min(warmup, steps) - 1, steps)
    of = ", less than half of" if 2 * reached < optim.lr else " of"
    yield (
        f"{name}: the warm-up of {warmup:,} steps is {longer} the stage's {steps:,}: the learning "
        f"rate reaches {reached:.2g}{of} {optim.lr:.2g}; lower {keys}optim.warmup_steps, to "
        f"{steps // 10:,} for a tenth of the steps"
    )


def device_warnings(config: RunConfig, devices: int) -> Iterator[str]:
    """Of devices with nothing to do."""
    for name, _, loop, _ in training_stages(config):
        if loop.rollout_batch_size % devices:
            yield (
                f"{name}: {loop.rollout_batch_size:,} prompts a step cannot be shared out evenly "
                f"over {devices:,} devices: some wait for the others"
            )


def training_stages(config: RunConfig) -> Iterator[tuple[str, str, LoopConfig, OptimConfig]]:
    """The stages in which a model is trained: name, place in the settings, loop and optimizer."""
    train, predistill = config.teacher.train, config.student.predistill
    if train is not None:
        yield "teacher", "teacher.train.", train.trainer, train.optim
    if predistill is not None:
        yield "predistill", "student.predistill.", predistill.trainer, predistill.optim
    yield config.objective.name, "", config.trainer, config.optim


def position_warnings(shape: ModelShape, size: Size) -> Iterator[str]:
    """Of sequences longer than the positions that a model was made for."""
    prompt, length = size.num_prompt_tokens, size.num_tokens
    # The last token is predicted and not read; an encoder reads the prompt alone.
    longest = max(prompt, length) if shape.is_encoder_decoder else prompt + length - 1
    if shape.max_positions is not None and longest > shape.max_positions:
        yield (
            f"{shape.name}: sequences of up to {longest:,} tokens are more than its "
            f"{shape.max_positions:,} positions: lower decoding.max_prompt_tokens or "
            "decoding.max_tokens"
        )
