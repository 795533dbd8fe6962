"""What the numbers of a report say, in plain sentences that are computed from them.

They are for the first half minute; the tables have all tests and numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from brim.metrics import spread
from brim.report.gather import NOT_BEGUN
from brim.report.more_tables import TestsByTask
from brim.report.seed_tests import SeedTest, seed_test
from brim.report.systems import Gathered, SystemRuns, TaskRuns, Unfinished
from brim.report.tables import best_student, decoded_otherwise, score_text
from brim.support.tables import Figure, PartTable, as_markdown, escape_markdown, markdown_sentence

_MOST_NAMES = 2
_LENGTHS_DIFFER = 0.05  # of the longest text: then a return is as much about length


def compared(task: TaskRuns, split: str) -> str:
    """Which systems of a task were compared, with how many seeds, on what."""
    runs = [run for system in task.systems for run in system.runs]
    examples = runs[0].results.get("num_examples", 0)
    counts = sorted(
        {len(system.runs) for system in task.systems if system.runs[0].seed is not None}
    )
    seeds = " to ".join(dict.fromkeys([str(counts[0]), str(counts[-1])]))
    systems = f"{len(task.systems)} system{'s' if len(task.systems) > 1 else ''}"
    return (
        f"{task.label}: {systems}, {seeds} seed{'s' if counts[-1] > 1 else ''} each ({len(runs)} "
        f"runs), on {examples:,} examples of the {split} split."
    )


def findings(
    task: TaskRuns, tests: Sequence[SeedTest], *, baseline: str, alpha: float
) -> list[str]:
    """Sentences about one task: a few on each first-class number, then what else was measured."""
    chosen = task.best_brim()
    sentences = []
    for name in dict.fromkeys([*task.returns[:1], *task.metrics[:1]]):
        parts = [_leader(task, name, chosen, baseline)]
        parts += _better_than_baseline(task, name, chosen, baseline, alpha)
        parts += _verdicts(task, tests, chosen, name, baseline=baseline, alpha=alpha)
        sentences.append(" ".join(parts))
    sentences += _ppo(task, tests, alpha)
    sentences += _choice_of_k(task, chosen)
    sentences += _training(task)
    if any(system.decoding for system in task.systems):
        sentences.append(decoded_otherwise(task))
    return sentences


def _leader(task: TaskRuns, name: str, chosen: SystemRuns | None, baseline: str) -> str:
    """Who has the best score, and what BRIM and the baseline have."""
    best = best_student(task, name, task.systems)
    others = [s for s in dict.fromkeys([chosen, task.find(baseline)]) if s is not None]
    others = [s for s in others if s is not best and s.values(name)]
    if best is None and not others:
        others = [s for s in task.systems if s.is_student and s.values(name)][:3]
    parts = [f"{best.label} is the best student, {_score(task, best, name)}"] if best else []
    if others:
        scores = (f"{s.label} has {_score(task, s, name)}" for s in others)
        parts.append(", ".join(scores))
    text = f"{_sentence(_name(task, name))}: {'; '.join(parts)}"
    lengths = [spread(s.values("length"))[0] for s in [best, *others] if s and s.values("length")]
    if name in task.returns and lengths and min(lengths) < (1 - _LENGTHS_DIFFER) * max(lengths):
        counts = ", ".join(f"{length:.1f}" for length in lengths)
        text += f" (their texts have {counts} tokens, and a shorter text has the higher return)"
    return f"{text}."


def _score(task: TaskRuns, system: SystemRuns, name: str) -> str:
    """With the number of seeds, where others have more."""
    count = len(system.values(name))
    fewer = count < task.num_seeds and system.runs[0].seed is not None
    return f"{score_text(system, name)}{f' (n = {count})' if fewer else ''}"


def _better_than_baseline(
    task: TaskRuns, name: str, chosen: SystemRuns | None, baseline: str, alpha: float
) -> list[str]:
    """Those that have a star in the tables, but for the one that has a sentence of its own."""
    base = task.find(baseline)
    if base is None:
        return []
    tests = [
        test
        for system in task.systems
        if system.is_student and system not in (base, chosen)
        if (test := seed_test(task, system, base, name))
    ]
    better = [test for test in tests if test.better and test.significant(alpha)]
    if not better:
        return []
    return [f"Better than {baseline}: {_and([t.system for t in better])} ({_largest(better)})."]


def _largest(tests: Sequence[SeedTest]) -> str:
    largest = max(test.test.p_value or 0.0 for test in tests)
    return f"p {'=' if len(tests) == 1 else '≤'} {largest:.2g}"


def _verdicts(
    task: TaskRuns,
    tests: Sequence[SeedTest],
    chosen: SystemRuns | None,
    name: str,
    *,
    baseline: str,
    alpha: float,
) -> list[str]:
    """How BRIM fares against its competitors: their names, and the p-value nearest to alpha."""
    if chosen is None:
        return []
    mine = [t for t in tests if t.system == chosen.label and t.metric == name]
    tested = [t for t in mine if t.test.p_value is not None]
    if not tested:
        reason = "no competitor shares two seeds with it"
        return [f"No test of {chosen.label}, for {reason}."] if mine else []
    groups = []
    for word, better in (("better than", True), ("worse than", False)):
        found = [t for t in tested if t.better is better and t.significant(alpha)]
        if found:
            bound = _largest(found)
            lost = [t.against for t in found if t.holm is not None and t.holm >= alpha]
            if lost:
                which = "" if len(lost) == len(found) else f" for {_and(lost)}"
                bound += f", not after Holm's correction{which}"
            groups.append(f"{word} {_and([t.against for t in found])} ({bound})")
    even = [t for t in tested if not t.significant(alpha)]
    if even:
        smallest = min(t.test.p_value or 0.0 for t in even)
        bound = f"p {'=' if len(even) == 1 else '≥'} {smallest:.2g}"
        names = [t.against for t in even]
        if len(names) > _MOST_NAMES:  # all that is not named elsewhere: it can be counted
            first = [name for name in names if name == baseline]
            names = [*first, f"{len(names) - len(first)} others"]
        groups.append(f"not told apart from {_and(names)} ({bound})")
    pairs = sorted({t.test.num_pairs for t in tested})
    count = str(pairs[0]) if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
    return [f"{chosen.label} is {'; '.join(groups)}, over {count} shared seeds."]


def _ppo(task: TaskRuns, tests: Sequence[SeedTest], alpha: float) -> list[str]:
    """Both kinds of PPO, where both were run."""
    name = next(iter(task.returns), None)
    sentences = []
    for found in tests:
        if found.against != "PPO with LLMR" or found.metric != name:
            continue
        p_value = found.test.p_value
        if p_value is None:
            verdict = "cannot be tested against"
        elif not found.significant(alpha):
            verdict = "is not told apart from"
        else:
            verdict = f"is {'better' if found.better else 'worse'} than"
        p = "" if p_value is None else f"p = {p_value:.2g}, "
        num = found.test.num_pairs
        sentences.append(
            f"{found.system} {verdict} {found.against} in {_name(task, found.metric)} ({p}"
            f"{found.test.difference:+.2f}, {num} seed{'s' if num > 1 else ''})."
        )
    return sentences


def _choice_of_k(task: TaskRuns, chosen: SystemRuns | None) -> list[str]:
    if len(task.brims) < 2:
        return []
    if chosen is None:
        return [
            "No K is chosen: some K is there twice, the K share no seed, or a validation score is "
            "not known."
        ]
    on_test = best_student(task, task.criterion, task.brims)
    text = f"K = {chosen.name.k} is chosen, by the validation {_name(task, task.criterion)}"
    if on_test is None or on_test is chosen:
        return [f"{text}."]
    return [f"{text}; the {chosen.runs[0].split} split would have chosen K = {on_test.name.k}."]


def _training(task: TaskRuns) -> list[str]:
    """Variance and bias of the K-step return, means over the training steps; LLMR is K = 1.

    Over the seeds that all of them have, for the student of one seed may vary far more than
    another's.
    """
    base = [s for s in task.systems if s.name.stem == "LLMR" and not s.decoding]
    systems = base + task.brims
    if len({system.name.k for system in systems}) < len(systems):
        return []  # some K is there twice, with other settings
    seeds = [{run.seed for run in system.runs} for system in systems]
    shared = set.intersection(*seeds) if seeds else set()
    found = {}
    for system in systems:
        variance, bias = (
            [v for run in system.runs if run.seed in shared for _, v in run.curve(f"rollout/{key}")]
            for key in ("var_return_k", "bias")
        )
        if variance and bias:
            found[str(system.name.k or 1)] = (spread(variance)[0], spread(bias)[0])
    if len(found) < 2:
        return []
    variances = ", ".join(f"{variance:.1f}" for variance, _ in found.values())
    biases = ", ".join(f"{bias:.2f}" for _, bias in found.values())
    return [
        f"The K-step return while training, K = {', '.join(found)}: variance {variances}; bias "
        f"{biases}."
    ]


def _name(task: TaskRuns, metric: str) -> str:
    return task.example(metric).name if metric in task.scores else metric


def _and(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


MISSING = "Missing, unfinished and failed"
_MAX_GAPS = 10  # in a terminal

Lead = list[tuple[str, list[str]]]
"""For each task what was compared, and what the numbers say."""


def lead_of(
    tasks: Sequence[TaskRuns], tests: TestsByTask, *, split: str, baseline: str, alpha: float
) -> Lead:
    """The sentences on each task."""
    return [
        (
            compared(task, split),
            findings(task, tests[task.label], baseline=baseline, alpha=alpha),
        )
        for task in tasks
    ]


def as_plain(lead: Lead) -> str:
    """Paragraphs, and lists of lines that begin with a dash."""
    return "\n\n".join(
        part
        for about, found in lead
        for part in (about, "\n".join(f"- {s}" for s in found))
        if part
    )


def for_page(lead: Lead, gaps: str) -> str:
    """The same with what is missing in a sentence; no line ends within `K = 2` or `p < 0.05`."""
    return re.sub(r" ([=≤≥<±]) ", "\u00a0\\1\u00a0", f"{as_plain(lead)}\n\n{gaps}")


def for_terminal(lead: Lead, gaps: Sequence[str]) -> str:
    """The same, and the first things that are missing."""
    shown = list(gaps[:_MAX_GAPS])
    if len(gaps) > len(shown):
        shown.append(f"… and {len(gaps) - len(shown):,} more in summary.md")
    return "\n".join([as_plain(lead), *(["", f"{MISSING}:", *shown] if shown else [])])


def summary(
    title: str,
    lead: Lead,
    gaps: Sequence[str],
    tables: Sequence[PartTable],
    figures: Sequence[Figure],
) -> str:
    """Everything but the outputs as Markdown."""

    def bullets(lines: Sequence[str]) -> str:
        return "".join(f"- {markdown_sentence(line)}\n" for line in lines)

    parts = [f"# {escape_markdown(title)}\n", "## Findings\n"]
    parts += [
        part for about, found in lead for part in (f"{markdown_sentence(about)}\n", bullets(found))
    ]
    if gaps:
        parts += [f"## {MISSING}\n", bullets(gaps)]
    parts += map(as_markdown, tables)
    parts += [
        f"## {escape_markdown(figure.title)}\n\n"
        f"![{escape_markdown(figure.title)}]({figure.name}.png)\n\n"
        f"{escape_markdown(figure.caption)}\n"
        for figure in figures
    ]
    return "\n".join(parts)


def missing(found: Gathered) -> list[str]:
    """Unfinished and failed runs, then what else is not there or was left out."""
    lines = []
    waiting = [run for run in found.unfinished if run.state == NOT_BEGUN]
    for run in found.unfinished:
        if run.state != NOT_BEGUN:
            seed = "" if run.seed is None else f", seed {run.seed}"
            lines.append(f"{run.label}{seed}: no results: {run.state} ({run.directory}).")
    folders: dict[Path, list[Unfinished]] = {}
    for run in waiting:
        folders.setdefault(run.directory.parents[1], []).append(run)
    lines += [_not_begun(folder, runs) for folder, runs in folders.items()]
    for task in found.tasks:
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
    return [*lines, *found.notes]


def gaps_in_short(found: Gathered) -> str:
    """One sentence for the head of a report; "" where nothing is missing."""
    states = Counter(
        NOT_BEGUN if run.state == NOT_BEGUN else "failed" if run.state.startswith("failed")
        else "unfinished"
        for run in found.unfinished
    )  # fmt: skip
    parts = [
        f"{states[state]:,} run{'s' if states[state] > 1 else ''} {state}"
        for state in ("failed", "unfinished", NOT_BEGUN)
        if states[state]
    ]
    few = sum(
        system.runs[0].seed is not None and len(system.runs) < task.num_seeds
        for task in found.tasks
        for system in task.systems
    )
    if few:
        parts.append(f"{few:,} system{'s' if few > 1 else ''} with fewer seeds than others")
    if found.notes:
        num = len(found.notes)
        parts.append(f"{num:,} note{'s' if num > 1 else ''} on what was left out")
    return f"Missing: {', '.join(parts)}; see the list below." if parts else ""


def _not_begun(sweep: Path, runs: Sequence[Unfinished]) -> str:
    """The points of one sweep; systems that lack the same seeds stand together."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.directory.parent.name, []).append(str(run.seed))
    groups: dict[tuple[str, ...], list[str]] = {}
    for system, lacking in seeds.items():
        groups.setdefault(tuple(lacking), []).append(system)
    parts = [
        f"{', '.join(systems)} with seed{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}"
        for lacking, systems in groups.items()
    ]
    number = f"{len(runs):,} run{'s' if len(runs) > 1 else ''}"
    return f"{sweep}: {number} of the sweep not begun: {'; '.join(parts)}."
