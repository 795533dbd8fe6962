"""What TRL's GOLD makes of a run's pair: two tokenizers, compared by sorted probabilities (ULD).

    brim train cmudict/anchored_other_tokenizer ... --out runs/other
    python benchmarks/gold.py runs/other --rates 1e-4 3e-4 1e-3 3e-3

GOLD starts from the run's pre-distilled student and takes as many steps, of as many texts, from the
same prompts in the same order. All texts are the student's own (`lmbda=1`), at the run's
temperature and length limit; the loss is the Universal Logit Distillation of `GOLDTrainer`, aligned
by bytes, and the rest has its defaults. AdamW without weight decay, linear warm-up, gradients
clipped at 1, float32, as the run. Of the rates the one with the best validation score is tested.
GOLD takes decoder-only models only, so both models of the run have to be. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brim.cli.process import flush_denormals, prepare_process
from brim.support.tables import as_markdown, interval_text, plain_table


def train_by_gold(run: Any, student: Any, teacher: Any, lr: float, rows: int, steps: int) -> None:
    """Train `student` in place."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    from brim.seeding import example_index

    config, examples = run.config, run.examples("train")
    order = [example_index(i, len(examples), config.seed) for i in range(steps * rows)]
    data = {
        "prompt": [examples[i].prompt for i in order],
        # Never learned from; the trainer wants one to be there.
        "completion": [(examples[i].references or ("",))[0] for i in order],
    }
    with tempfile.TemporaryDirectory() as directory:
        teacher.tokenizer.save_pretrained(f"{directory}/teacher")
        settings = GOLDConfig(
            f"{directory}/gold", use_cpu=True, bf16=False, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
            seed=config.seed, per_device_train_batch_size=rows, gradient_accumulation_steps=1,
            max_steps=steps, learning_rate=lr, warmup_steps=config.optim.warmup_steps,
            lr_scheduler_type="constant_with_warmup", max_grad_norm=1.0, weight_decay=0.0,
            max_completion_length=config.decoding.max_tokens, max_length=None,
            temperature=config.decoding.temperature, top_p=1.0, lmbda=1.0, use_uld_loss=True,
            teacher_tokenizer_name_or_path=f"{directory}/teacher",
        )  # fmt: skip
        trainer = GOLDTrainer(
            model=student.model, teacher_model=teacher.model, args=settings,
            train_dataset=Dataset.from_dict(data), processing_class=student.tokenizer,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    student.model.eval()


def measure(args: argparse.Namespace) -> str:
    """A Markdown table: validation of each rate, then the test of what is compared."""
    import torch

    from brim.models import load_model
    from brim.runs.fit import evaluation_settings
    from brim.runs.inputs import reopen
    from brim.runs.pairs import scorer
    from brim.runs.stages import find_teacher, find_trained
    from brim.training.evaluation import evaluate

    run = reopen(args.run)
    config, teacher = run.config, find_teacher(run).model
    steps = args.steps or config.trainer.max_steps
    rows = config.trainer.rollout_batch_size * getattr(config.objective, "num_generations", 1)
    scores = (*run.task.metrics, "expected_return", "length")
    table = [["", "split", *scores]]

    def score(name: str, model: Any, split: Any) -> float:
        reader = scorer(config, run.examples("train"), teacher, model)
        with torch.no_grad():
            made = evaluate(model, run.used(split), evaluation_settings(run), teacher=reader)
        values = [made.scores[each] for each in scores]
        table.append([name, split, *(interval_text(v.value, v.low, v.high) for v in values)])
        print(table[-1], flush=True)
        return float(made.scores[config.evaluation.metric].value)

    score("start", find_trained(run, "predistill").model, "validation")
    students = {}
    for lr in args.rates:
        students[lr] = student = find_trained(run, "predistill").model
        student.tokenizer.padding_side = "left"
        train_by_gold(run, student, teacher, lr, rows, steps)
        validation = score(f"GOLD, lr {lr:g}", student, "validation")
        students[lr] = validation, student
    lr = max(students, key=lambda rate: students[rate][0])
    score("start", find_trained(run, "predistill").model, "test")
    score(f"GOLD, lr {lr:g}", students[lr][1], "test")
    score(f"{config.objective.name} (the run)", load_model(args.run / "best"), "test")
    return as_markdown(plain_table(table))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-4, 3e-4, 1e-3, 3e-3])
    parser.add_argument("--steps", type=int, help="of training; by default the run's")
    print(measure(parser.parse_args(argv)))


if __name__ == "__main__":
    prepare_process()
    flush_denormals(True)
    main()
