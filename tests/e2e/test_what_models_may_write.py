"""A run whose models come with generation settings that say what they may write."""

import json

import pytest
from pairs import T5
from transformers import AutoModelForSeq2SeqLM

from brim.models import build_model, load_model, train_tokenizer
from brim.runs.evaluate import evaluate_run
from brim.runs.train import train

TINY = {"family": "t5", "d_model": 32, "d_ff": 64, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher and a student of one tokenizer, each with a token that it never writes."""
    text = [f"write {number} in Roman numerals: IVXLC" for number in range(200)]
    tokenizer = train_tokenizer(text, kind="bpe", vocab_size=300)
    unused = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer(text[0]).input_ids))
    found = {}
    for seed, (role, settings) in enumerate(
        {
            "teacher": {"suppress_tokens": [unused[-1]]},
            "student": {
                "bad_words_ids": [[unused[-2]]],
                "forced_eos_token_id": tokenizer.eos_token_id,
                "forced_bos_token_id": unused[-3],
            },
        }.items()
    ):
        found[role] = tmp_path_factory.mktemp(role)
        model = build_model(TINY, tokenizer, seed=seed)
        model.model.generation_config.update(**settings)
        model.save(found[role])
    return found, unused


def test_both_models_of_a_run_write_the_same_tokens(make_config, folders, tmp_path):
    (paths, unused), run = folders, tmp_path / "run"
    teacher, student = (f"{role}={{path: {paths[role]}}}" for role in ("teacher", "student"))
    nothing = ("teacher.build=null", "teacher.tokenizer=null", "teacher.train=null")
    config = make_config(
        T5, *nothing, "student.build=null", "student.predistill=null", teacher, student
    )
    results = train(config, run)
    best = load_model(run / "best")
    assert best.rules.excluded == set(unused[-2:])
    assert best.rules.forced_start == (unused[-3],)
    path = run / "predictions" / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # Two of eight tokens are forced.
    assert max(row["num_tokens"] for row in rows) == 6
    assert not any(set(row["token_ids"]) & set(unused[-3:]) for row in rows)
    assert all(abs(row["teacher_return"]) < 1e4 for row in rows)
    again = evaluate_run(run, split="test")
    assert again["scores"]["return"]["value"] == results["scores"]["return"]["value"]
    # What is saved writes the same in transformers alone.
    plain = AutoModelForSeq2SeqLM.from_pretrained(run / "best")
    for row in rows[:8]:
        ids = best.tokenizer(row["prompt"], return_tensors="pt").input_ids
        written = plain.generate(ids, max_new_tokens=8, do_sample=False)[0, 2:].tolist()
        assert written[: row["num_tokens"]] == row["token_ids"]
