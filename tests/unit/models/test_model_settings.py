"""Settings of models: readable without torch, and hashed by the keys of finished runs."""

import pytest
from tiny import FAMILIES, tiny

import brim.models
from brim.config.loading import make_config
from brim.errors import ConfigError, ModelError
from brim.models import BeamSearch, Decoding, Lora, add_adapters, checkpoint_layers
from brim.models.modes import without_weights
from brim.models.settings import EvaluationDecoding

# Of the inputs that a kept evaluation is compared by.
HASHED = {
    "max_tokens", "strategy", "temperature", "top_k", "top_p", "num_beams", "length_penalty",
    "batch_tokens", "engine",
}  # fmt: skip


def test_names_are_imported_when_used():
    assert "LanguageModel" in dir(brim.models)
    for name in dir(brim.models):
        assert getattr(brim.models, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        brim.models.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_prompt_tokens=3),
        Decoding().greedy(9),
        BeamSearch(num_beams=2),
        EvaluationDecoding(strategy="beam").build(5, 9),
    ],
)
def test_a_description_has_the_keys_that_are_hashed(decoding):
    assert decoding.describe().keys() == HASHED
    assert decoding.describe()["num_beams"] == decoding.texts_per_row


def test_settings_that_stand_in_no_file_are_refused_in_one_line():
    assert make_config(Decoding, {"top_k": 3}, "here") == Decoding(top_k=3)
    for wrong, message in (
        ({"top_p": 2.0}, "here: top_p: "),
        ({"topp": 0.5}, "did you mean top_p"),
        ({"strategy": "greedy", "top_k": 3}, "here: top_k: .*is for strategy sampling"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            make_config(Decoding, wrong, "here")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_without_weights_can_be_changed_in_place_of_the_model(family):
    model = tiny(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = [weight.requires_grad for weight in model.parameters()]
    bare = without_weights(model)
    assert all(weight.is_meta for weight in bare.parameters())
    assert bare.num_parameters() == model.num_parameters()  # shared ones stay shared
    checkpoint_layers(bare, dropout=True)
    add_adapters(bare, Lora(), seed=0)
    with pytest.raises(ModelError, match="'nowhere' is no linear layer"):
        add_adapters(without_weights(model), Lora(target_modules=("nowhere",)), seed=0)
    assert model.state_dict().keys() == before.keys()
    assert all((value == before[name]).all() for name, value in model.state_dict().items())
    assert [weight.requires_grad for weight in model.parameters()] == trainable
