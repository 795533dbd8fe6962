"""The model card of a run's student: `best/README.md`, in the form that the Hugging Face hub reads.

A function of what the run left, so that the same run has the same card; read without torch. It
names no folder of this machine: of a path only the last part is kept.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from brim.config.loading import without_incidental
from brim.config.yaml import dump
from brim.errors import RunError
from brim.examples import TODAY
from brim.metrics import Score
from brim.runs.directory import Results, RunDirectory, decoding_in_words
from brim.runs.tested import find_tested
from brim.support.files import atomic_write_text, read_json
from brim.support.tables import as_markdown, interval_text, percent, plain_table, score_format
from brim.training.settings import RunConfig

CARD = "README.md"

# Settings that may name a file or folder; so may any that begins like an absolute path.
_PATHS = {"path", "train", "validation", "test"}
_ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")
# Where the run was, not what it was.
_PRIVATE = {"server", "key_env"}

_SEAL = "<!-- Written by brim (sha256 {}). An edited card is kept; brim card makes one anew. -->\n"


def write_card(run: Path, *, anew: bool = False) -> Path:
    """Write the card of a run's best checkpoint, unless there is one that was edited.

    Args:
        run: a run directory whose best checkpoint was tested.
        anew: also in place of an edited one.

    Returns:
        Its path.

    Raises:
        RunError: the run has no best checkpoint or no test results, or is damaged.
    """
    RunDirectory(run).check_best()
    path = run / "best" / CARD
    known = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    if anew or known is None or _is_ours(known):
        text = make_card(run)
        text += _SEAL.format(_digest(text))
        if text != known:
            atomic_write_text(path, text)
    return path


def make_card(run: Path) -> str:
    """Return the text of a run's card; the metadata is above it, between two lines of dashes."""
    directory = RunDirectory(run)
    settings, manifest, tests = directory.settings(), directory.manifest(), directory.tests()
    results = directory.results(tests[0])
    facts = manifest.get("models", {})
    models = {role: dict(_sources(settings[role], facts.get(role, {}))) for role in _ROLES}
    config = read_json(run / "best" / "config.json")
    known = [commit for found in models.values() for commit in found if found[commit]]
    recipe = _redacted(without_incidental(RunConfig, settings), frozenset(known))
    task, method = recipe["task"], recipe["objective"]["name"]
    licenses = {
        path if commit else _last(path): _license(path, commit)
        for found in models.values()
        for path, commit in found.items()
    }
    metadata = _metadata(models, licenses, recipe, [directory.results(split) for split in tests])
    body = [
        f"# {task['name']}, by {method}",
        f"A language model ({config['model_type']}), distilled on the task `{task['name']}` by "
        f"`{method}` from {_named(recipe['teacher'])}.",
        "## Scores",
        *(_scores(directory, split) for split in tests),
        f"Written by {decoding_in_words(results.facts.get('decoding', {}))}. In brackets: "
        f"{percent(next(iter(results.scores.values())).confidence)} intervals, over examples. "
        "Lengths are in tokens. Returns are sums of the teacher's Q-values (logits).",
        "## How to load it",
        _loading(run / "best", task, recipe, results),
        "## How it was made",
        _provenance(manifest, results, recipe),
        "## License",
        _license_in_words(licenses),
        "## Limits",
        _limits(results, recipe),
    ]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "".join(f"{part}\n\n" for part in body)


_ROLES = ("teacher", "student")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_ours(text: str) -> bool:
    """Whether a card is as it was written here."""
    start = text.rfind(_SEAL.partition("(")[0])
    return start >= 0 and text[start:] == _SEAL.format(_digest(text[:start]))


def _sources(role: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """The pretrained models behind a role: name, and commit where it came from the hub."""
    if role.get("path") is not None:
        yield role["path"], facts.get("commit")
    for number, one in enumerate(role.get("several") or ()):
        name = one.get("name") or str(number)
        yield from _sources(one, facts.get("teachers", {}).get(name, {}))


def _license(path: str, commit: str | None) -> str | None:
    """The license in a model's own card; None where that is not here, or says nothing."""
    folder = Path(path).expanduser()
    card: Any = folder / CARD
    if not folder.is_dir():
        card = try_to_load_from_cache(path, CARD, revision=commit) if commit else None
    if not isinstance(card, str | Path) or not Path(card).is_file():
        return None
    data = ModelCard.load(card, ignore_metadata_errors=True).data
    named = data.license_name if data.license == "other" else None
    return named or data.license  # type: ignore[no-any-return]


def _metadata(
    models: Mapping[str, Mapping[str, str | None]],
    licenses: Mapping[str, str | None],
    recipe: Mapping[str, Any],
    tests: Sequence[Results],
) -> ModelCardData:
    """What the hub reads; a license only where all models behind this one have the same."""
    task, method = recipe["task"]["name"], recipe["objective"]["name"]
    # Whose weights it has: its own source, or the teacher whose layers it was made of.
    made_of = models["teacher" if recipe["student"].get("keep_layers") else "student"]
    base = [name for name, commit in made_of.items() if commit]
    common = {*licenses.values()}
    options: dict[str, Any] = {"base_model": base, "base_model_relation": "finetune"}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        license=common.pop() if len(common) == 1 else None,
        tags=["brim", "knowledge-distillation", method],
        model_name=f"{task}-{method}",
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=task,
                dataset_name=task,
                dataset_split=results.facts["split"],
                metric_type=key,
                metric_name=score.name,
                metric_value=round(score.value, 4),
            )
            for results in tests
            for key, score in results.scores.items()
            if math.isfinite(score.value)
        ],
        **(options if base else {}),
    )


def _redacted(value: Any, kept: frozenset[str], key: str = "") -> Any:
    """Settings without nulls, with the last part of each path but those of the hub that are kept.

    Where a server was and how it was asked is left out.
    """
    if isinstance(value, Mapping):
        items = {k: v for k, v in value.items() if v is not None and k not in _PRIVATE}
        return {k: _redacted(v, kept, k) for k, v in items.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item, kept, key) for item in value]
    if isinstance(value, str) and value not in kept and (key in _PATHS or _ABSOLUTE.match(value)):
        return _last(value)
    return value


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _scores(run: RunDirectory, split: str) -> str:
    """The model beside its teacher and its start, as far as these were tested."""
    own = run.results(split)
    systems = {**_tested(run, split), "this model": own}
    rows = [["score", *systems]]
    for key, score in own.scores.items():
        cells = [_score(key, found.scores.get(key)) for found in systems.values()]
        rows.append([score.name, *cells])
    sizes = [found.facts.get("num_parameters") for found in systems.values()]
    rows.append(["parameters", *("—" if size is None else f"{size:,}" for size in sizes)])
    table = as_markdown(plain_table(rows)).strip()
    return f"On the {own.num_examples:,} examples of the split {split}:\n\n{table}"


def _tested(run: RunDirectory, split: str) -> dict[str, Results]:
    try:
        found = find_tested(run, split)
    except RunError:  # damaged: `brim report` says so
        return {}
    return {
        "teacher" if name == "teacher" else "start": RunDirectory(folder).results(split)
        for name, folder in found.items()
    }


def _score(key: str, score: Score | None) -> str:
    if score is None:
        return "—"
    return interval_text(score.value, score.low, score.high, spec=score_format(key))


def _named(role: Mapping[str, Any]) -> str:
    """A model of a recipe in words."""
    if role.get("several"):
        return " and ".join(_named(one) for one in role["several"])
    if role.get("keep_layers"):
        return f"{role['keep_layers']} of the teacher's layers"
    trained = ", trained on the task first" if role.get("train") else ""
    name = role.get("path") or role.get("model")
    if name is None:
        return f"a {role.get('build', {}).get('family', 'model')} from scratch{trained}"
    return f"`{name}`{trained}"


def _loading(
    best: Path, task: Mapping[str, Any], recipe: Mapping[str, Any], results: Results
) -> str:
    """Code for transformers alone, and what a prompt must look like."""
    encoder_decoder = bool(read_json(best / "config.json").get("is_encoder_decoder"))
    auto = "AutoModelForSeq2SeqLM" if encoder_decoder else "AutoModelForCausalLM"
    chat = task.get("messages_column") is not None
    template = task.get("prompt") or f"{{{task.get('prompt_column', 'prompt')}}}"
    given = ['prompt = "…"', 'inputs = tokenizer(prompt, return_tensors="pt")']
    if chat:
        given = [
            'messages = [{"role": "user", "content": "…"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    decoding, limits = results.facts.get("decoding", {}), recipe["decoding"]
    # All of it, for the rest is as the model's own settings or transformers' defaults have it.
    options: dict[str, Any] = {"max_new_tokens": limits["max_tokens"]}
    options |= {"do_sample": False, "num_beams": 1}
    if decoding.get("strategy") == "sampling":
        options |= {"do_sample": True, "top_k": 0, "top_p": 1.0}
    elif decoding.get("strategy") == "beam":
        options |= {"early_stopping": "never", "renormalize_logits": True}
    names = ("num_beams", "length_penalty", "temperature", "top_k", "top_p")
    options |= {name: decoding[name] for name in names if decoding.get(name) is not None}
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    written = "ids[0]" if encoder_decoder else 'ids[0, inputs["input_ids"].shape[1] :]'
    code = [
        f"from transformers import {auto}, AutoTokenizer\n",
        'name = "…"  # this repository, or the folder of this card',
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        f"model = {auto}.from_pretrained(name)",
        *given,
        f"ids = model.generate(**inputs, {arguments})",
        f"print(tokenizer.decode({written}, skip_special_tokens=True))",
    ]
    form = "A prompt is a chat, rendered by the tokenizer's chat template"
    files = (best / name for name in ("chat_template.jinja", "tokenizer_config.json"))
    if any("strftime_now" in file.read_text("utf-8") for file in files if file.exists()):
        form += f", which writes today's date where training had {TODAY:%d %B %Y}"
    if not chat:
        form = f"A prompt has this form:\n\n```text\n{template}\n```\n\nIt is plain text"
    limit = limits.get("max_prompt_tokens")
    cut = f", and was cut to {limit} tokens in training" if limit else ""
    return "\n".join(["```python", *code, "```", "", f"{form}{cut}."])


def _provenance(manifest: Mapping[str, Any], results: Results, recipe: Mapping[str, Any]) -> str:
    versions = manifest.get("versions", {})
    names = [f"{name} {versions[name]}" for name in ("brim", "torch", "transformers")
             if name in versions]  # fmt: skip
    teacher = manifest.get("models", {}).get("teacher", {}).get("sha256")
    facts = results.facts
    lines = [
        f"Student before any training: {_named(recipe['student'])}.",
        f"Teacher as it was loaded: SHA-256 `{teacher}`." if teacher else "",
        f"This model: SHA-256 `{facts['model']}`." if "model" in facts else "",
        f"Steps: {facts.get('steps')}, of which step {facts.get('best_step')} was the best on "
        f"validation. Seed: {recipe['seed']}. Versions: {', '.join(names)}.",
        *(
            f"Data, {split}: {known['num_examples']:,} examples, SHA-256 `{known['sha256']}`."
            for split, known in manifest.get("data", {}).items()
        ),
    ]
    listed = "\n".join(f"- {line}" for line in lines if line)
    settings = f"```yaml\n{dump(dict(recipe)).strip()}\n```"
    return (
        f"{listed}\n\n<details><summary>All settings; of paths only the last part</summary>\n\n"
        f"{settings}\n\n</details>"
    )


def _license_in_words(licenses: Mapping[str, str | None]) -> str:
    if not licenses:
        return "No pretrained model went into it from a file. Check the terms of the data."
    unknown = "unknown: check it before you share this model"
    lines = [f"- `{model}`: {name or unknown}" for model, name in licenses.items()]
    return "Of the models that it was made of or learned from:\n\n" + "\n".join(lines)


def _limits(results: Results, recipe: Mapping[str, Any]) -> str:
    cut, count = results.facts.get("num_truncated_completions", 0), results.num_examples
    stop = results.stopped_at
    return (
        (f"Its training had not ended ({stop}). " if stop else "")
        + f"It was trained and tested on one task, by one seed ({recipe['seed']}): the intervals "
        f"do not cover what another seed would change. {cut:,} of {count:,} test texts were cut at "
        f"{recipe['decoding']['max_tokens']} tokens. It may repeat what its teacher gets wrong."
    )
