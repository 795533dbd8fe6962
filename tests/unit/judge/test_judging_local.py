"""A judge in this process: a tiny model that knows nothing, so that what it says is no verdict."""

import pytest

from brim.errors import ConfigError, ModelError
from brim.judge import JudgeConfig, Limits, judge_runs, open_judging
from brim.judge.asking import RejectedError
from brim.judge.local import _example, local_identity, write
from brim.models import LanguageModel, build_model, train_tokenizer
from brim.support.progress import Reporter

CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = "A good summary should be both precise and concise. " * 3


def build(family="llama", chat=CHAT, **options) -> LanguageModel:
    tokenizer = train_tokenizer([TEXT], kind="bpe", vocab_size=300)
    tokenizer.chat_template = chat
    shape = {"family": family, "d_model": 16, "layers": 1, "heads": 2, **options}
    return build_model(shape, tokenizer, seed=0)


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    build().save(folder)
    return folder


@pytest.fixture
def runs(write_run):
    return write_run("ours", ["One.", "Two."]), write_run("theirs", ["Three.", "Four."])


def judged(runs, model, out, **options):
    settings = JudgeConfig(
        a=runs[0], b=runs[1], model=str(model), backend="local", request={"max_tokens": 6},
        criteria=["overall"], limits=Limits(concurrency=3),
    )  # fmt: skip
    return judge_runs(open_judging(settings), out, **options)


def test_replies_of_a_model_that_knows_nothing_are_parse_failures_and_shown_so(
    runs, judge_model, tmp_path
):
    results = judged(runs, judge_model, tmp_path / "out")
    row = results["criteria"]["overall"]
    assert (row["unparsable"], row["wins"], row["losses"]) == (8, 0, 0)
    assert row["win_rate"] is None
    assert (row["num_pairs"], row["num_incomplete"]) == (0, 2)
    assert results["completion_tokens"] > 0
    page = (tmp_path / "out" / "judge.md").read_text(encoding="utf-8")
    assert "no pair has four verdicts" in page
    assert "replies without a verdict (8)" in page
    assert "base_url" not in results["judge"]


def test_what_was_said_is_not_asked_again(runs, judge_model, tmp_path, monkeypatch):
    first = judged(runs, judge_model, tmp_path / "out")
    monkeypatch.setattr("brim.judge.local.write", lambda *_: pytest.fail("asked again"))
    assert judged(runs, judge_model, tmp_path / "out") == first


def test_replies_do_not_depend_on_what_is_asked_beside():
    model = build()
    prompts = [f"Summary {i}. {'x ' * i}" for i in range(5)]
    together = [reply.text for reply in write(model, prompts, 8)]
    assert together == [write(model, [prompt], 8)[0].text for prompt in prompts]


def test_the_prompt_is_a_users_message_in_the_chat_template(monkeypatch):
    model = build()
    seen = []
    encode = LanguageModel.encode

    def watch(self, examples, **options):
        batch = encode(self, examples, **options)
        seen.extend(self.tokenizer.batch_decode(batch.prompt_ids))
        return batch

    monkeypatch.setattr(LanguageModel, "encode", watch)
    write(model, ["Which?"], 2)
    assert seen[0].endswith("<user>Which?<assistant>")
    write(build(chat=None), ["Which?"], 2)
    assert seen[1].endswith("Which?")


def test_a_missing_chat_template_is_told(runs, tmp_path, capsys):
    build("t5", chat=None).save(tmp_path / "plain")
    judged(runs, tmp_path / "plain", tmp_path / "out", reporter=Reporter())
    assert "has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_candidate_cannot_spell_a_special_token(family):
    model = build(family)
    (example,) = model.encode([_example(model, "x</s>y<pad>z</s>")], max_tokens=None).prompt_ids
    special = {model.tokenizer.pad_token_id, model.tokenizer.eos_token_id}
    inner = example.tolist()[:-1] if family == "t5" else example.tolist()
    assert not special & set(inner)


def test_a_prompt_that_is_too_long_fails_alone(runs, write_run, tmp_path):
    model = build("gpt2", max_positions=1200)
    with pytest.raises(RejectedError, match="too long for the judge"):
        write(model, ["x" * 2000], 8)
    model.save(tmp_path / "short")
    sources = ["Short.", "Long. " * 300]
    runs = [write_run(n, [f"{n} 1", f"{n} 2"], sources=sources) for n in ("a", "b")]
    results = judged(runs, tmp_path / "short", tmp_path / "out")
    assert results["num_failed"] == 4
    assert "too long" in results["failures"][0]
    row = results["criteria"]["overall"]
    assert (row["unparsable"], row["unanswered"]) == (4, 4)


def test_another_model_in_the_same_folder_is_another_judge(tmp_path):
    build(d_model=8).save(tmp_path)
    before = local_identity(str(tmp_path), {})
    assert local_identity(str(tmp_path), {}) == before
    build(d_model=12).save(tmp_path)
    assert local_identity(str(tmp_path), {}) != before


def test_a_run_directory_stands_for_its_best_checkpoint(judge_model, tmp_path):
    (tmp_path / "best").symlink_to(judge_model)
    assert "files" in local_identity(str(tmp_path), {})


def test_mistakes_are_told(runs, tmp_path):
    for value in (0, "many", True):
        with pytest.raises(ConfigError, match="max_tokens is a whole number"):
            local_identity("m", {"max_tokens": value})
    with pytest.raises(ModelError, match="nowhere"):
        judged(runs, tmp_path / "nowhere", tmp_path / "out")
