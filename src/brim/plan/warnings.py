"""What in a run's settings will probably not go as it was meant."""

from __future__ import annotations

from collections.abc import Iterator

from brim.optimization import count_steps
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
    for name, loop, optim in training_stages(config):
        if loop.max_steps is None and num_examples is None:
            continue
        steps = count_steps(loop, num_examples or 0)
        if optim.warmup_steps > steps:
            reached = optim.lr * steps / optim.warmup_steps
            yield (
                f"{name}: the warm-up of {optim.warmup_steps:,} steps is longer than the stage's "
                f"{steps:,}: the learning rate ends at {reached:.2g}, not {optim.lr:.2g}"
            )


def device_warnings(config: RunConfig, devices: int) -> Iterator[str]:
    """Of devices with nothing to do."""
    for name, loop, _ in training_stages(config):
        if loop.rollout_batch_size % devices:
            yield (
                f"{name}: {loop.rollout_batch_size:,} prompts a step cannot be shared out evenly "
                f"over {devices:,} devices: some wait for the others"
            )


def training_stages(config: RunConfig) -> Iterator[tuple[str, LoopConfig, OptimConfig]]:
    """The stages in which a model is trained, with their loops and optimizers."""
    if config.teacher.train is not None:
        yield "teacher", config.teacher.train.trainer, config.teacher.train.optim
    if config.student.predistill is not None:
        yield "predistill", config.student.predistill.trainer, config.student.predistill.optim
    yield config.objective.name, config.trainer, config.optim


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
