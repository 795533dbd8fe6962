"""Plans of models that cannot be a student, or whose code cannot be counted."""

import pytest
from transformers import (
    JambaConfig,
    MambaConfig,
    ModernBertDecoderConfig,
    OpenAIGPTConfig,
)

from brim.config.loading import load_config
from brim.errors import ModelError
from brim.plan import plan
from brim.training.settings import RunConfig

SIZES = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = {"intermediate_size": 24, "num_attention_heads": 4}
JAMBA = {"num_key_value_heads": 2, "num_experts": 2, "use_mamba_kernels": False}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(**SIZES), "its MambaModel keeps no keys and values"),
        (
            ModernBertDecoderConfig(**SIZES, **HEADS, pad_token_id=0),
            "its decoder, a Linear, takes no input_ids",
        ),
        (OpenAIGPTConfig(vocab_size=48, n_embd=16, n_layer=1, n_head=2), "keeps no keys and"),
        (JambaConfig(**SIZES, **HEADS, **JAMBA), "cannot be counted .*; brim train needs no plan"),
    ],
)
def test_what_cannot_be_planned_says_why(tmp_path, config, reason):
    config.save_pretrained(tmp_path)
    model = f"{{path: {tmp_path}}}"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"task: {{name: wordproblems}}\nteacher: {model}\nstudent: {model}\n"
        "trainer: {max_steps: 4}\n"
    )
    with pytest.raises(ModelError, match=reason) as caught:
        plan(load_config(RunConfig, recipe))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
