"""`brim train`, `evaluate` and `generate` as functions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from accelerate import PartialState

from brim.api.result import RunResult
from brim.cli.process import working
from brim.compare.ending import ending
from brim.config.loading import FROM_PYTHON, make_config
from brim.errors import ConfigError
from brim.models.settings import Decoding
from brim.recipes import find_recipe, run_directory
from brim.recipes.given import Recipe, Sections, configure
from brim.recipes.memory import Kept
from brim.report import summary
from brim.runs import generate as writing
from brim.runs import train as training
from brim.runs.directory import RunDirectory
from brim.runs.evaluate import evaluate_run, evaluate_stage
from brim.runs.inputs import splits_tested
from brim.runs.stage_results import evaluate_stages
from brim.runs.tested import StageName
from brim.tasks import Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(
    recipe: Recipe = None,
    out: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    callbacks: Sequence[Any] = (),
    resume: training.Resume = "auto",
    stages_dir: str | Path | None = None,
    quiet: bool = False,
    **sections: Unpack[Sections],
) -> RunResult:
    """Distill, and test the best checkpoint: `brim train`.

    The same call resumes a run that was stopped, and so does the command line:
    `brim train OUT/config.yaml --out OUT`. Of several test sets the result has the scores of the
    first, and `result.run.results("test.NAME")` those of another.

    Args:
        recipe: a recipe's name or file, or all settings; None where the sections say all.
        out: the run directory; by default where `brim train` has it, of a named recipe or file.
        overrides: settings by keys such as `trainer.max_steps`, above all others.
        tokenizer: of models in memory that come without their own.
        callbacks: see `brim.training.callbacks`; they are called as the settings' own are.
        resume: `auto` resumes what is in `out`, `must` refuses to begin, `never` to resume.
        stages_dir: folder of stages that runs share; `out/stages` by default.
        quiet: show no progress.
        sections: groups of settings, see `Sections`: `task`, `teacher`, `student`, `objective`,
            `trainer` and others. Rows and models in memory are kept in `out/inputs`.

    Raises:
        BrimError: settings, data, models or directory cannot be used; see `brim.runs.train.train`.
    """
    if out is None:
        if not isinstance(recipe, str | Path):
            raise ConfigError(f"{FROM_PYTHON}: out: name the run directory")
        out = run_directory(find_recipe(str(recipe)))
    out, kept = Path(out), Kept(Path(out), tokenizer)
    with working(quiet) as reporter, kept.removed_unless_begun():
        config = configure(recipe, overrides or {}, sections, kept)
        training.train(
            config,
            out,
            resume=resume,
            stages_dir=None if stages_dir is None else Path(stages_dir),
            reporter=reporter,
            command=sys.argv,
            callbacks=callbacks,
        )
        run = RunDirectory(out)
        for split in run.tests() if config.evaluation.stages else ():
            evaluate_stages(out, split=split, reporter=reporter)
        shown = run.tests() if PartialState().is_main_process else ()
        text = "\n\n".join(ending(run, split=split) for split in shown)
    return _result(out, run.tests()[0], text)


def evaluate(
    run: str | Path,
    *,
    split: Split = "test",
    model: str | Path | None = None,
    stage: StageName | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> RunResult:
    """Score a run's best checkpoint again, or another model on its task: `brim evaluate`.

    Args:
        run: a run directory.
        split: which part of the data; of several test sets `test` is all, and the result has the
            scores of the first.
        model: a folder or hub name, in place of the run's best checkpoint; needs `out`.
        stage: one of the models that the run began with, in a folder that runs share.
        out: folder of the results, by default the run's.
        overrides: settings to change, by keys such as `evaluation.decoding.strategy`; need `out`.
        quiet: show no progress.

    Raises:
        BrimError: see `brim.runs.evaluate.evaluate_run`.
    """
    run = Path(run)
    RunDirectory(run).check()
    changes = [
        f"{key}={json.dumps(value, default=str, ensure_ascii=False)}"
        for key, value in (overrides or {}).items()
    ]
    where = run if out is None else Path(out)
    with working(quiet) as reporter:
        splits = splits_tested(run, split, changes)
        for name in splits:
            if stage is None or model or out or changes:
                evaluate_run(
                    run,
                    split=name,
                    model=None if model is None else str(model),
                    stage=stage,
                    out=None if out is None else where,
                    overrides=changes,
                    reporter=reporter,
                )
            else:
                where = evaluate_stage(run, stage, split=name, reporter=reporter)
    return _result(where, splits[0])


def generate(
    source: str | Path,
    prompts: str | Sequence[str],
    *,
    seed: int = 0,
    block: int = 32,
    **decoding: Any,
) -> list[str]:
    """Complete prompts: `brim generate`.

    Args:
        source: a run directory, or a model's folder or hub name.
        prompts: one, or several.
        seed: of the sampling.
        block: prompts that are completed together.
        decoding: settings of `Decoding`, such as `max_tokens` or, to sample, `temperature`; greedy
            without one of sampling.

    Returns:
        A completion for each prompt.

    Raises:
        BrimError: no such run or model, or settings that cannot be used.
    """
    sampled = decoding.keys() & {"temperature", "top_k", "top_p"}
    given = {"strategy": "sampling" if sampled else "greedy", "max_tokens": 128, **decoding}
    settings = make_config(Decoding, given, FROM_PYTHON)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    with working():
        found = writing.generate(source, texts, decoding=settings, seed=seed, block=block)
        return list(found)


def _result(directory: Path, split: str, text: str | None = None) -> RunResult:
    found = RunDirectory(directory).results(split)
    text = summary({"split": split, **found.facts}) if text is None else text
    return RunResult(directory, split, found.scores, found.facts, text)
