"""The one sentence that comes first: how good the best student is, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from brim.metrics import METRICS, holm, spread
from brim.report.labels import joined
from brim.report.seed_tests import SeedTest, seed_test
from brim.report.systems import SystemRuns, TaskRuns

_MOST_TASKS = 3
_MOST_NAMES = 3


def headline(tasks: Sequence[TaskRuns], *, alpha: float) -> str:
    """Return a sentence on the best student of each task, by the task's first metric.

    It is called the best only where it is better than every other student after Holm's correction.
    """
    clauses = [_clause(task, alpha) for task in tasks[:_MOST_TASKS]]
    if len(tasks) == 1:
        return f"{clauses[0][:1].upper()}{clauses[0][1:]}."
    named = [f"{task.label}: {clause}" for task, clause in zip(tasks, clauses, strict=False)]
    more = len(tasks) - len(clauses)
    return f"{'; '.join(named)}{f'; {more} more below' if more else ''}."


def _clause(task: TaskRuns, alpha: float) -> str:
    name = next(iter((*task.metrics, *task.returns)), None)
    rivals = [s for s in task.systems if s.is_student and not s.decoding and name in task.scores]
    rivals = [s for s in rivals if name is not None and s.values(name)]
    if name is None or not rivals:
        return "no student has a score"
    if len(rivals) == 1:
        return f"{rivals[0].label} {_keeps(task, rivals[0], name)}"
    students = f"{len(rivals)} students{' with one seed each' if task.num_seeds == 1 else ''}"
    superlative = "highest" if task.example(name).higher_is_better else "lowest"
    best, metric = task.best_students(name, task.systems), task.name_of(name)
    if not best:
        return _open(rivals, name, superlative, metric)
    others = [s for s in rivals if s not in best]
    doubt = _doubt(task, best, others, name, alpha)
    if len(best) > 1:
        who = f"{joined([s.label for s in best])} tie: {'both' if len(best) == 2 else 'all'}"
        return f"{who} {_keeps(task, best[0], name, several=True)}{doubt}"
    (first,) = best
    if first.name.family == "student":  # what training began with
        more = superlative.replace("est", "er")
        who = f"no method has a {more} {metric} than the {first.label.lower()}, which"
    elif doubt:
        who = f"{first.label}, with the {superlative} {metric} of {students},"
    else:
        return f"{first.label}, the best of {students}, {_keeps(task, first, name)}"
    return f"{who} {_keeps(task, first, name, named=False)}{doubt}"


def _open(rivals: Sequence[SystemRuns], name: str, superlative: str, metric: str) -> str:
    """No best one, for means are over different numbers of seeds."""
    pick = max if superlative == "highest" else min
    first = pick(rivals, key=lambda s: spread(s.values(name))[0])
    return (
        f"no student is called the best: {first.label} has the {superlative} {metric}, "
        f"{first.score_text(name)}, but not all students have as many seeds"
    )


def _keeps(
    task: TaskRuns, system: SystemRuns, name: str, *, several: bool = False, named: bool = True
) -> str:
    """What share of the teacher's quality, at what share of its size; or the score itself."""
    keep, have = ("keep", "have") if several else ("keeps", "has")
    metric, mean = task.name_of(name), spread(system.values(name))[0]
    teachers = [s for s in task.systems if not s.is_student and s.decoding == system.decoding]
    teacher = next((s for s in teachers if s.values(name)), None)
    score = f"{have}{f' {metric}' if named else ''} {system.score_text(name)}"
    if teacher is None:
        return score
    theirs = spread(teacher.values(name))[0]
    known = METRICS.get(name)
    # A share is one of a score that begins at nothing, and is better the higher it is.
    if known is None or known.bounds[0] or not known.higher_is_better or theirs <= 0:
        return f"{score}, the teacher {teacher.score_text(name)}"
    text = f"{keep} {_percent(mean / theirs)} of the teacher's{f' {metric}' if named else ''}"
    sizes = [_size(one) for one in (system, teacher)]
    return f"{text} at {_percent(sizes[0] / sizes[1])} of its size" if all(sizes) else text


def _size(system: SystemRuns) -> float:
    """Parameters; 0 where they are not known, as of a teacher behind a server."""
    return next((n for run in system.runs if (n := run.results.get("num_parameters"))), 0)


def _percent(share: float) -> str:
    """Without digits behind the point, but nearly all is never 100%, and little never 0%."""
    if 0.995 <= share < 1:
        return f"{math.floor(1000 * share) / 10}%"
    return f"{100 * share:.1g}%" if 0 < share < 0.005 else f"{share:.0%}"


def _doubt(
    task: TaskRuns,
    best: Sequence[SystemRuns],
    others: Sequence[SystemRuns],
    name: str,
    alpha: float,
) -> str:
    """Name the others that the best is not shown to beat; "" where it beats each."""
    tests = {s.label: seed_test(task, best[0], s, name, alpha) for s in others}
    known = {label: t for label, t in tests.items() if t is not None and t.test.p_value is not None}
    corrected = dict(zip(known, holm([t.test.p_value or 0.0 for t in known.values()]), strict=True))
    groups: dict[str, list[str]] = {}
    for label in tests:
        group = _group(known.get(label), corrected.get(label), alpha, len(best) > 1)
        if group:
            groups.setdefault(group, []).append(label)
    return "".join(f", and {group} {_some(labels)}" for group, labels in groups.items())


def _group(test: SeedTest | None, corrected: float | None, alpha: float, several: bool) -> str:
    """What is said before the names of those that one is no better than; "" of the others."""
    it, it_is = ("them", "they are") if several else ("it", "it is")
    if test is None or corrected is None:
        return f"no test compares {it} with"
    if not test.significant(alpha):
        return f"no difference was seen between {it} and"
    if not test.better:
        return f"over shared seeds {it_is} worse than"
    return "" if corrected < alpha else f"{it_is} not clearly better than"


def _some(labels: Sequence[str]) -> str:
    """The first few by name."""
    more = len(labels) - _MOST_NAMES
    named = list(labels) if more < 2 else [*labels[:_MOST_NAMES], f"{more} others"]
    return joined(named)
