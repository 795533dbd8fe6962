"""Real rows of XSum, Europarl and GSM8K through the tasks: counts, truncation, trivial systems."""

import gzip
import json
import re
from pathlib import Path
from statistics import mean

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from brim.metrics import score
from brim.models.scratch import build_model, train_tokenizer
from brim.tasks import GSM8K, SPLITS, Europarl, XSum, describe

SHARED = Path(__file__).parents[4] / "shared" / "data"
FOLDERS = {"xsum": "xsum_mini", "europarl": "europarl_en_nl_mini", "gsm8k": "gsm8k"}
TASKS = {"xsum": XSum, "europarl": Europarl, "gsm8k": GSM8K}
COUNTS = {"xsum": (999, 768, 2337), "europarl": (2187, 300, 500), "gsm8k": (6705, 768, 1319)}
MAX_PROMPT_TOKENS = {"xsum": 1024, "europarl": 80, "gsm8k": 200}
TEMPLATES = {"xsum": "summarize: ", "europarl": "translate English to Dutch: ", "gsm8k": ""}

each_task = pytest.mark.parametrize("name", FOLDERS)
pytestmark = pytest.mark.skipif(
    not all((SHARED / folder).is_dir() for folder in FOLDERS.values()),
    reason="the shared data sets are not here",
)


def rows(name: str, split: str) -> list[dict]:
    path = SHARED / FOLDERS[name] / f"{split}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    tasks = {name: task(path=str(SHARED / FOLDERS[name])) for name, task in TASKS.items()}
    return lambda name, split: tasks[name].load(split, cache_dir=cache)


@each_task
def test_counts_and_texts(name, load, caplog):
    for split, count in zip(SPLITS, COUNTS[name], strict=True):
        examples, expected = load(name, split), rows(name, split)
        assert describe(examples)["num_examples"] == count == len(expected)
        assert describe(examples)["skipped"] == {}
        for i in range(0, count, 97):
            example, row = examples[i], expected[i]
            assert (example.id, example.prompt) == (row["id"], TEMPLATES[name] + row["source"])
            assert example.references == (row["target"],)
    assert caplog.text == ""


def test_the_line_index_rebuilds_gsm8k_s_three_splits(load, tmp_path):
    published = {"train": [], "test": []}
    for split in SPLITS:
        for row in rows("gsm8k", split):
            file, line = row["id"].split("-")[1:]
            published[file].append((int(line), row["source"], row["target"]))
    for file, lines in published.items():
        text = [json.dumps({"question": q, "answer": a}) for _, q, a in sorted(lines)]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(text) + "\n")
    task = GSM8K(path=str(tmp_path))
    for split in SPLITS:
        ours = {(e.id, e.prompt, e.references) for e in task.load(split)}
        assert ours == {(e.id, e.prompt, e.references) for e in load("gsm8k", split)}


def test_gsm8k_without_calculator_marks(load):
    task = GSM8K(path=str(SHARED / "gsm8k"), calculator_marks=False)
    bare, full = task.load("test"), load("gsm8k", "test")
    assert any("<<" in example.references[0] for example in full)
    assert not any("<<" in example.references[0] for example in bare)
    texts = [example.references[0] for example in bare]
    answers = score(["answer_accuracy"], texts, [example.references for example in full])
    assert answers["answer_accuracy"].value == 100


@each_task
@pytest.mark.parametrize("family", ["t5", "qwen2"])
def test_prompts_are_cut_at_the_limits_of_table_5(name, family, load):
    examples, limit = load(name, "test")[:150], MAX_PROMPT_TOKENS[name]
    texts = [text for e in examples for text in (e.prompt, *e.references)]
    tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=700)
    shape = {"family": family, "d_model": 8, "layers": 1, "heads": 1}
    model = build_model(shape, tokenizer, seed=0)
    batch = model.encode(examples, max_tokens=limit)
    ends = family == "t5"  # an encoder reads the end token too
    ids = [tokenizer(e.prompt, add_special_tokens=ends).input_ids for e in examples]
    long = [i for i, row in enumerate(ids) if len(row) > limit]
    assert batch.num_truncated_prompts == len(long)
    assert 0 < len(long) < len(examples)
    assert batch.prompt_mask.sum(dim=1).tolist() == [min(len(row), limit) for row in ids]
    for i in long[:5]:
        kept = tokenizer.decode(batch.prompt_ids[i][batch.prompt_mask[i]], skip_special_tokens=True)
        # A prompt that is the problem and nothing else is what a decoder-only model continues.
        start = name != "gsm8k" or ends
        assert examples[i].prompt.startswith(kept) if start else examples[i].prompt.endswith(kept)


# Systems that need no model, by the outside tools themselves


def lead(text: str) -> str:
    """The first line of an article, or its first sentence where it is one line."""
    return re.split(r"\n|(?<=[.!?]) ", text)[0]


@pytest.mark.parametrize("system", ["lead", "copy", "empty"])
def test_trivial_summaries_by_rouge_score(system, load):
    examples = load("xsum", "test")[:150]
    articles = [e.prompt.removeprefix("summarize: ") for e in examples]
    make = {"lead": lead, "copy": lambda text: text[:2000], "empty": lambda text: ""}[system]
    texts = [make(article) for article in articles]
    names = XSum().metrics
    ours = score(names, texts, [e.references for e in examples], num_resamples=10)
    scorer = RougeScorer(names, use_stemmer=True)
    theirs = [scorer.score(e.references[0], text) for e, text in zip(examples, texts, strict=True)]
    for name in names:
        assert ours[name].value == pytest.approx(100 * mean(s[name].fmeasure for s in theirs))
    if system == "lead":  # the lead is a poor summary: 16.3 in Narayan et al. 2018
        assert 10 < ours["rouge1"].value < 25
    else:
        assert (ours["rouge1"].value == 0) == (system == "empty")


@pytest.mark.parametrize("system", ["lead", "copy", "empty"])
def test_trivial_translations_by_sacrebleu(system, load):
    examples = load("europarl", "test")[:150]
    english = [e.prompt.removeprefix("translate English to Dutch: ") for e in examples]
    make = {"lead": lambda text: text[:20], "copy": lambda text: text, "empty": lambda text: ""}
    texts = [make[system](sentence) for sentence in english]
    names = Europarl().metrics
    ours = score(names, texts, [e.references for e in examples], num_resamples=10)
    dutch = [[e.references[0] for e in examples]]
    theirs = {
        "bleu": sacrebleu.corpus_bleu(texts, dutch),
        "chrf": sacrebleu.corpus_chrf(texts, dutch),
        "ter": sacrebleu.corpus_ter(texts, dutch),
    }
    for name in names:
        assert ours[name].value == pytest.approx(theirs[name].score)
    if system == "copy":  # names, numbers and punctuation are the same
        assert 0 < ours["bleu"].value < 10 < ours["chrf"].value < 35


@pytest.mark.parametrize("system", ["reference", "copy", "empty", "always 2"])
def test_trivial_answers_by_the_official_rule(system, load):
    examples = load("gsm8k", "test")
    make = {
        "reference": lambda e: e.references[0],
        "copy": lambda e: e.prompt,
        "empty": lambda e: "",
        "always 2": lambda e: "#### 2",
    }[system]
    texts = [make(e) for e in examples]
    answer = score(["answer_accuracy"], texts, [e.references for e in examples], num_resamples=10)
    ours = answer["answer_accuracy"]
    # What stands behind the last mark, told apart from the library by splitting at it.
    finals = [e.references[0].rpartition("#### ")[2].replace(",", "") for e in examples]
    expected = {
        "reference": 1.0,
        "copy": 0.0,
        "empty": 0.0,
        "always 2": finals.count("2") / len(finals),
    }[system]
    assert ours.value == pytest.approx(100 * expected)
    assert ours.details["by_official_rule"] == pytest.approx(100 * expected)
    fallback = ours.details["with_last_number_fallback"]
    assert fallback > ours.value if system == "copy" else fallback == ours.value
