"""What a plan warns of before anything is paid for."""

from __future__ import annotations

from collections.abc import Iterator

from brim.plan.models import ModelShape, Size
from brim.training.optimizer import schedule_warnings
from brim.training.settings import RunConfig

# Tokens of a prompt where the recipe sets no limit.
UNLIMITED_PROMPT_TOKENS = 512


def settings_warnings(config: RunConfig, num_examples: int | None) -> Iterator[str]:
    """Of limits, of K and of warm-ups; `num_examples` of the training split, None if not known."""
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
    yield from schedule_warnings(config, num_examples)


def served_warnings(config: RunConfig) -> Iterator[str]:
    """Of what happens elsewhere."""
    if config.teacher.server is not None:
        yield (
            f"the teacher, {config.teacher.model}, is behind a server: what it takes, and what it "
            "writes for the student to learn, is not counted"
        )


def device_warnings(config: RunConfig, devices: int) -> Iterator[str]:
    """Of devices with nothing to do."""
    for name, _, loop, _ in config.stages():
        if loop.rollout_batch_size % devices:
            yield (
                f"{name}: {loop.rollout_batch_size:,} prompts a step cannot be shared out evenly "
                f"over {devices:,} devices: some wait for the others"
            )


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
