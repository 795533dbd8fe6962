"""What a resume makes again."""

from saved_models import fitted, qwen2_tokenizer

from brim.models import LanguageModel, load_model
from brim.support.seals import find_damage
from brim.training.resuming import Start, mend


def test_best_is_made_again_with_all_chat_templates(tmp_path):
    tokenizer = qwen2_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    source = tmp_path / "checkpoints" / "step-2"
    LanguageModel(fitted("qwen2", tokenizer), tokenizer).save(source)
    start = Start(source, {"step": 2, "best_step": 2, "best_sha256": "other"}, None, source)
    mend(tmp_path, start, keep=1)
    assert find_damage(tmp_path / "best") is None
    assert load_model(tmp_path / "best").tokenizer.chat_template == tokenizer.chat_template
