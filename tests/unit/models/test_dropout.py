from typing import Any

import pytest
import torch
from rounding import assert_rounding
from tiny import FAMILIES, written
from torch import Tensor

from brim.errors import ModelError
from brim.models import LanguageModel, Lora, add_adapters, set_dropout
from brim.types import Rollout

FUNCTIONS = ("dropout", "scaled_dot_product_attention")  # every family's dropout ends in these


def probabilities(
    model: LanguageModel, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """What reaches torch's own functions in a forward pass in training mode."""
    seen: list[float] = []
    dropout, attention = (getattr(torch.nn.functional, name) for name in FUNCTIONS)

    def watched_dropout(x: Tensor, p: float, training: bool, *rest: bool) -> Tensor:
        seen.append(p if training else 0.0)
        return dropout(x, p, training, *rest)

    def watched_attention(*args: Tensor, dropout_p: float = 0.0, **rest: Any) -> Tensor:
        seen.append(dropout_p)
        return attention(*args, dropout_p=dropout_p, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", watched_dropout)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched_attention)
        model.train()
        model.logprobs(rollout)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dropout_gets_the_probability(family, monkeypatch):
    model, rollout = written(family)
    config = model.model.config.to_json_string()
    for probability in (0.3, 0.0, 0.2):
        set_dropout(model.model, probability)
        seen = probabilities(model, rollout, monkeypatch)
        assert seen
        assert set(seen) == {probability}
    assert model.model.config.to_json_string() == config


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropout_training_mode_is_evaluation_mode(family):
    model, rollout = written(family)
    evaluated = model.logprobs(rollout).detach()
    set_dropout(model.model, 0.0)
    model.train()
    assert_rounding(model.logprobs(rollout).detach(), evaluated)
    set_dropout(model.model, 0.5)
    assert not torch.allclose(model.logprobs(rollout), evaluated, atol=1e-2)
    assert not torch.equal(model.logprobs(rollout), model.logprobs(rollout))
    model.eval()
    assert torch.equal(model.logprobs(rollout).detach(), evaluated)


def test_layers_that_are_left_out_as_a_whole_are_another_matter():
    model, _ = written("bart")
    model.model.model.encoder.layerdrop = 0.25
    set_dropout(model.model, 0.1)
    assert model.model.model.encoder.layerdrop == 0.25
    assert model.model.model.encoder.layers[0].activation_dropout == 0.1


def test_adapters_keep_a_dropout_of_their_own(monkeypatch):
    for set_first in (True, False):
        model, rollout = written("t5")
        if set_first:
            set_dropout(model.model, 0.0)
        add_adapters(model.model, Lora(dropout=0.4), seed=0)
        if not set_first:
            set_dropout(model.model, 0.0)
        assert set(probabilities(model, rollout, monkeypatch)) == {0.0, 0.4}


def test_a_model_without_dropout_says_so():
    model, _ = written("llama")
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            del module.attention_dropout
    set_dropout(model.model, 0.0)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no dropout to set"):
        set_dropout(model.model, 0.1)
    with pytest.raises(ValueError, match="must be in"):
        set_dropout(model.model, 1.0)
