"""What the numbers of a report say, in plain sentences that are computed from them."""

from __future__ import annotations

from collections.abc import Sequence

from brim.metrics import spread
from brim.report.seed_tests import SeedTest
from brim.report.systems import Gathered, SystemRuns, TaskRuns
from brim.report.tables import best_student, score_text


def compared(task: TaskRuns, split: str) -> str:
    """Which systems of a task were compared, with how many seeds, on what."""
    runs = [run for system in task.systems for run in system.runs]
    examples = runs[0].results.get("num_examples", 0)
    counts = sorted(
        {len(system.runs) for system in task.systems if system.runs[0].seed is not None}
    )
    seeds = " to ".join(dict.fromkeys([str(counts[0]), str(counts[-1])]))
    plural = "s" if counts[-1] != 1 else ""
    return (
        f"{task.label}: {len(task.systems)} systems, {seeds} seed{plural} each ({len(runs)} runs), "
        f"{task.kind} student, on {examples:,} examples of the {split} split. Checkpoints and K "
        f"are picked by the validation split's {_name(task, task.criterion)}."
    )


def findings(
    task: TaskRuns, tests: Sequence[SeedTest], *, baseline: str, alpha: float
) -> list[str]:
    """Sentences about one task; each holds its numbers."""
    chosen = task.best_brim()
    sentences = [
        _leader(task, name, chosen, baseline)
        for name in dict.fromkeys([*task.returns[:1], *task.metrics[:1]])
    ]
    sentences += _verdicts(task, tests, chosen, alpha)
    sentences += _choice_of_k(task, chosen)
    sentences += _training(task)
    sentences += _ppo(task, tests, alpha)
    return sentences


def missing(gathered: Gathered) -> list[str]:
    """Unfinished and failed runs, then what else is not there or was left out."""
    lines = []
    for run in gathered.unfinished:
        seed = "" if run.seed is None else f", seed {run.seed}"
        lines.append(f"{run.label}{seed}: no results: {run.state} ({run.directory}).")
    for task in gathered.tasks:
        few = [
            f"{system.label} ({len(system.runs)})"
            for system in task.systems
            if system.runs[0].seed is not None and len(system.runs) < task.num_seeds
        ]
        if few:
            lines.append(
                f"{task.label}: fewer than {task.num_seeds} seeds, so their means are not over the "
                f"same seeds as the others': {', '.join(few)}."
            )
    return [*lines, *gathered.notes]


def _leader(task: TaskRuns, name: str, chosen: SystemRuns | None, baseline: str) -> str:
    """Who has the best score, and what BRIM and the baseline have, with their lengths."""
    best = best_student(task, name, task.systems)
    base = task.find(baseline)
    shown = [s for s in dict.fromkeys([best, chosen, base]) if s is not None and s.values(name)]
    parts = [f"{s.label} {score_text(s, name)}{_length(s)}" for s in shown]
    which = "highest" if task.example(name).higher_is_better else "lowest"
    lead = f"{which} of the students first" if best else "of"
    return f"{_sentence(_name(task, name))}, {lead}: {'; '.join(parts)}."


def _length(system: SystemRuns) -> str:
    lengths = system.values("length")
    return f" at {spread(lengths)[0]:.1f} tokens" if lengths else ""


def _verdicts(
    task: TaskRuns, tests: Sequence[SeedTest], chosen: SystemRuns | None, alpha: float
) -> list[str]:
    """How BRIM fares against its competitors, on the first return and the first metric."""
    if chosen is None:
        return []
    sentences = []
    for name in dict.fromkeys([*task.returns[:1], *task.metrics[:1]]):
        mine = [t for t in tests if t.system == chosen.label and t.metric == name]
        tested = [t for t in mine if t.test.p_value is not None]
        if not tested:
            if mine:
                sentences.append(
                    f"{chosen.label}, {_name(task, name)}: no test, for no competitor shares two "
                    "seeds with it."
                )
            continue
        groups = []
        for word, better in (("better than", True), ("worse than", False)):
            found = [t for t in tested if t.better is better and t.significant(alpha)]
            if found:
                groups.append(f"{word} {', '.join(_test(t) for t in found)}")
        even = [t for t in tested if not t.significant(alpha)]
        if even:
            groups.append(f"not told apart from {', '.join(_test(t) for t in even)}")
        lead = f"{chosen.label}, {_name(task, name)}, paired t-tests at {alpha:g}"
        sentences.append(f"{lead}: {'; '.join(groups)}.")
    return sentences


def _test(found: SeedTest) -> str:
    test = found.test
    effect = "" if test.effect_size is None else f", d_z {test.effect_size:+.2f}"
    return (
        f"{found.against} ({test.difference:+.2f}, p {test.p_value:.3g}{effect}, "
        f"{test.num_pairs} pairs)"
    )


def _choice_of_k(task: TaskRuns, chosen: SystemRuns | None) -> list[str]:
    if len(task.brims) < 2:
        return []
    if chosen is None:
        return [
            "No K is chosen: some K is there twice, the K share no seed, or a validation score is "
            "not known."
        ]
    on_test = best_student(task, task.criterion, task.brims)
    name = _name(task, task.criterion)
    text = f"The K with the best validation {name} is {chosen.name.k}"
    if on_test is None:
        return [f"{text}."]
    same = "the same" if on_test is chosen else str(on_test.name.k)
    return [f"{text}; on the test split, which has no say, it would have been {same}."]


def _training(task: TaskRuns) -> list[str]:
    """Variance and bias of the K-step return, means over the training steps."""
    systems = [s for s in task.systems if s.name.stem == "LLMR"] + task.brims
    parts = []
    for system in systems:
        variance, bias = (
            [value for curve in system.curves(f"rollout/{key}") for _, value in curve]
            for key in ("var_return_k", "bias")
        )
        if variance and bias:
            parts.append(f"{system.label} {spread(variance)[0]:.1f} and {spread(bias)[0]:+.2f}")
    if len(parts) < 2:
        return []
    return [f"Variance and bias of the K-step return, means over training: {'; '.join(parts)}."]


def _ppo(task: TaskRuns, tests: Sequence[SeedTest], alpha: float) -> list[str]:
    """Both kinds of PPO, where both were run."""
    name = next(iter(task.returns), None)
    found = [t for t in tests if t.against == "PPO with LLMR" and t.metric == name]
    sentences = []
    for test in found:
        ours, theirs = task.find(test.system), task.find(test.against)
        assert ours is not None
        assert theirs is not None
        text = f"{test.system} {score_text(ours, test.metric)}, {test.against} "
        text += f"{score_text(theirs, test.metric)} in {_name(task, test.metric)}"
        if test.test.p_value is not None:
            text += (
                f": {test.verdict(alpha)} (p {test.test.p_value:.3g}, {test.test.num_pairs} pairs)"
            )
        sentences.append(f"{text}.")
    return sentences


def _name(task: TaskRuns, metric: str) -> str:
    return task.example(metric).name if metric in task.scores else metric


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
