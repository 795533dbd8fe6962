"""Folders for CTranslate2, beside transformers on the same folder."""

import pytest
from saved_models import PROMPTS, built, fitted, llama_tokenizer, qwen2_tokenizer, with_rope
from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

from brim.errors import ModelError
from brim.examples import Example
from brim.models import LanguageModel
from brim.models.loading import load_encoder
from brim.release.export import _write

pytest.importorskip("ctranslate2")

from brim.release import ct2


def phi3() -> LanguageModel:
    tokenizer = llama_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = Phi3Config(
        vocab_size=len(tokenizer), num_attention_heads=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, **sizes,
    )  # fmt: skip
    return LanguageModel(Phi3ForCausalLM(config), tokenizer)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("make", "why"),
    [(phi3, "KeyError.'type'."), (lambda: with_rope(**YARN), "'yarn' is not yet implemented")],
    ids=["phi3", "yarn"],
)
def test_what_the_converter_does_not_know_is_one_line(make, why, tmp_path):
    make().save(tmp_path / "best")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=f"best: CTranslate2 cannot convert it: .*{why}") as found:
        ct2.convert(tmp_path / "best", tmp_path / "out", None)
    assert "\n" not in str(found.value)


def test_prompts_of_one_token_beside_others(tmp_path):
    best, out = tmp_path / "best", tmp_path / "out"
    built("bpe", "llama").save(best)
    out.mkdir()
    ct2.convert(best, out, None)
    encoder = load_encoder(best)
    prompts, _ = encoder.prompts([Example(str(i), text) for i, text in enumerate(PROMPTS)], None)
    assert {1, 2, 3} <= {len(ids) for ids in prompts}
    found = encoder.texts(ct2.write(out, prompts, encoder, 8))
    assert found == encoder.texts(_write(best, encoder, prompts, 8))


def test_all_chat_templates_come_along(tmp_path):
    best, out = tmp_path / "best", tmp_path / "out"
    tokenizer = qwen2_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    LanguageModel(fitted("qwen2", tokenizer), tokenizer).save(best)
    out.mkdir()
    ct2.convert(best, out, None)
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
