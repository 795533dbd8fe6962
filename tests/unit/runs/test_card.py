"""What a model card says; `tests/e2e/test_release.py` runs its code."""

from types import SimpleNamespace

import pytest
from tiny import tiny_language_model

from brim.runs.card import _loading


@pytest.mark.parametrize("dated", [True, False])
def test_a_chat_template_that_writes_the_date_is_named(tmp_path, dated):
    model = tiny_language_model("llama")
    today = "{{ strftime_now('%d') }} " if dated else ""
    model.tokenizer.chat_template = today + "{{ messages[0].content }}"
    model.save(tmp_path)
    recipe = {"decoding": {"max_tokens": 3, "max_prompt_tokens": 5}}
    task = {"messages_column": "messages"}
    text = _loading(tmp_path, task, recipe, SimpleNamespace(facts={}))
    said = ", which writes today's date where training had 26 July 2024, and was cut to 5 tokens"
    assert (said in text) == dated
