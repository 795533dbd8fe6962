"""What a model does between its last hidden state and its logits, found by trying it once.

Families differ: T5 scales the hidden state, BART adds a bias, Gemma caps the logits. Instead of a
list of families, three tokens are passed through each model at construction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from brim.errors import ModelError
from brim.models.backbone import Backbone

# Largest tolerated difference between two ways to compute the same hidden states, relative to the
# largest of them. A mask or a position that is wrong moves them by about 1.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_LOW_PRECISION_TOLERANCE = 0.1


def start_token_id(model: PreTrainedModel) -> int | None:
    """The token that opens an encoder-decoder's completions; None for a decoder-only model.

    Raises:
        ModelError: an encoder-decoder names none.
    """
    if not model.config.is_encoder_decoder:
        return None
    for settings in (model.generation_config, model.config):
        token_id = getattr(settings, "decoder_start_token_id", None)
        if token_id is not None:
            return int(token_id)
    raise ModelError(
        f"{_name(model)} names no token to start its decoder with; "
        "set decoder_start_token_id in its config.json"
    )


def output_head(model: PreTrainedModel) -> nn.Module:
    """The module that maps hidden states to logits.

    Raises:
        ModelError: there is none.
    """
    head = model.get_output_embeddings()
    if head is None or getattr(head, "weight", None) is None:
        raise ModelError(
            f"{_name(model)} has no language-modelling head; "
            "choose a causal or sequence-to-sequence language model"
        )
    return head  # type: ignore[no-any-return]


@torch.no_grad()
def measure_scale(model: PreTrainedModel, backbone: Backbone, start_id: int | None) -> float:
    """The factor between hidden states and the head's input: 1, or d^-0.5 for T5.

    Raises:
        ModelError: the model treats its hidden states or logits in another way, gives non-finite
            hidden states, or predicts other things with a cache than without.
    """
    head = output_head(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return _measure_scale(model, head, backbone, start_id)
    finally:
        for module in training:
            module.training = True


def _measure_scale(
    model: PreTrainedModel, head: nn.Module, backbone: Backbone, start_id: int | None
) -> float:
    num_rows = head.weight.shape[0]
    tokens = torch.tensor([_ordinary_ids(model, num_rows)], device=model.device)
    prompt, completion = tokens[:, :2], tokens[:, 2:]
    mask = torch.ones_like(prompt, dtype=torch.bool)
    hidden = backbone.hidden(prompt, mask, completion, 2)
    if not hidden.isfinite().all():
        raise ModelError(f"{_name(model)} gives non-finite hidden states; its weights are damaged")

    state = backbone.start(prompt, mask, 2)
    state.step(completion[:, 0])
    if not _close(state.hidden, hidden[:, -1]):
        raise ModelError(
            f"{_name(model)} predicts another token with a cache than without; "
            "only autoregressive models can be decoded"
        )

    head_input, unchanged = _watch_head(model, head, tokens, start_id)
    if not unchanged:
        raise ModelError(
            f"{_name(model)} changes its logits behind the output head (a cap or a scale); "
            "such models are not supported"
        )
    for scale in (1.0, hidden.shape[-1] ** -0.5):
        if _close(hidden[:, -1] * scale, head_input):
            return scale
    raise ModelError(
        f"{_name(model)} changes its hidden states before the output head; "
        "such models are not supported"
    )


def _ordinary_ids(model: PreTrainedModel, num_rows: int) -> list[int]:
    """Three token ids, none of them the padding where that can be had."""
    ids = [i for i in range(min(num_rows, 4)) if i != model.config.pad_token_id]
    return (ids * 3)[:3]


def _watch_head(
    model: PreTrainedModel, head: nn.Module, tokens: Tensor, start_id: int | None
) -> tuple[Tensor, bool]:
    """The head's input at the last position, and whether its output goes out as it is.

    The model's own forward pass runs with large logits in place of the head's output; a bias that
    the chunked head knows may be added to them, nothing else.
    """
    seen: list[Tensor] = []
    planted: list[Tensor] = []

    def replace(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(inputs[0])
        ramp = torch.linspace(-100, 100, output.shape[-1], device=output.device).to(output.dtype)
        planted.append(ramp.expand_as(output))
        return planted[-1]

    if start_id is None:
        inputs = {"input_ids": tokens}
    else:
        opened = torch.cat([tokens.new_full((1, 1), start_id), tokens[:, 2:]], dim=1)
        inputs = {"input_ids": tokens[:, :2], "decoder_input_ids": opened}
    handle = head.register_forward_hook(replace)
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ModelError(f"{_name(model)} does not use its output head once; it is not supported")
    expected = planted[0]
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None:
        expected = expected + bias
    return seen[0][:, -1], bool(torch.equal(logits, expected))


def _close(left: Tensor, right: Tensor) -> bool:
    tolerance = _TOLERANCE.get(left.dtype, _LOW_PRECISION_TOLERANCE)
    return bool((left - right).abs().max() <= tolerance * right.abs().max())


def _name(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} ({model.config.name_or_path or 'built here'})"
