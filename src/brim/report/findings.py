"""What the numbers of a report say, in plain sentences that are computed from them.

They are for the first half minute; the tables have all tests and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from brim.metrics import spread
from brim.metrics.regrets import REGRETS
from brim.report.labels import joined
from brim.report.seed_tests import SeedTest, seed_test
from brim.report.systems import (
    LLMR_HERE,
    SystemRuns,
    TaskRuns,
    digits_of,
    shared_seeds,
    with_enough_seeds,
)
from brim.report.tables import SAMPLED_OTHERWISE, decoded_otherwise
from brim.support.tables import many, p_text
from brim.training.monitors import KINDS

_MOST_NAMES = 2
_LENGTHS_DIFFER = 0.05  # of the longest text: then a return is as much about length


def compared(task: TaskRuns, split: str) -> str:
    """Return which systems of a task were compared, with how many seeds, on what."""
    counts = sorted(len(system.runs) for system in task.systems if system.has_seeds)
    seeds = " to ".join(dict.fromkeys([str(counts[0]), str(counts[-1])]))
    without = len(task.systems) - len(counts)
    more = f" and {without} without a seed" if without else ""
    runs = sum(len(system.runs) for system in task.systems)
    return (
        f"{task.label}: {many(len(counts), 'system')} with {seeds} seed"
        f"{'s' if counts[-1] > 1 else ''} each{more} ({many(runs, 'run')}), on "
        f"{many(task.num_examples, 'example')} of the {split} split."
    )


def findings(
    task: TaskRuns, tests: Sequence[SeedTest], *, baseline: str, alpha: float
) -> list[str]:
    """Return sentences about one task: on each first-class number, then what else was measured."""
    sentences = []
    for name in dict.fromkeys([*task.returns[:1], *task.metrics[:1]]):
        parts = [_leader(task, name, baseline)]
        parts += _better_than_baseline(task, name, baseline, alpha)
        for system in task.ours:
            mine = [t for t in tests if t.system == system.label and t.metric == name]
            parts += _against_competitors(task, system.label, mine, baseline=baseline, alpha=alpha)
        sentences.append(" ".join(parts))
    sentences += _ppo(task, tests, alpha)
    sentences += _choice_of_k(task)
    sentences += _choice_of_settings(task)
    sentences += _training(task)
    sentences += _alarms(task)
    sentences += _pair(task)
    if any(system.decoding for system in task.systems):
        sentences.append(decoded_otherwise(task))
    if task.sampled_otherwise("expected_return"):
        sentences.append(SAMPLED_OTHERWISE)
    return sentences


def _leader(task: TaskRuns, name: str, baseline: str) -> str:
    """Which system has the best score, and what our methods and the baseline have."""
    best = task.best_students(name, task.systems)
    others = [s for s in dict.fromkeys([*task.ours, task.find(baseline)]) if s is not None]
    others = [s for s in others if s not in best and s.values(name)]
    if not best and not others:
        others = [s for s in task.systems if s.is_student and s.values(name)][:3]
    parts = []
    if len(best) > 1:
        scores = ", ".join(_score(task, s, name) for s in best)
        parts.append(f"{joined([s.label for s in best])} tie for the best student, {scores}")
    elif best:
        parts.append(f"{best[0].label} is the best student, {_score(task, best[0], name)}")
    if others:
        parts.append(", ".join(f"{s.label} has {_score(task, s, name)}" for s in others))
    printed = task.name_of(name)
    text = f"{printed[:1].upper()}{printed[1:]}: {'; '.join(parts)}"
    shown = [s for s in [*best, *others] if s.values("length")]
    lengths = [spread(s.values("length"))[0] for s in shown]
    if name in task.returns and lengths and min(lengths) < (1 - _LENGTHS_DIFFER) * max(lengths):
        counts = ", ".join(f"{length:.1f}" for length in lengths)
        text += f" (their texts have {counts} tokens, and a shorter text has the higher return"
        regrets = [s.values(REGRETS[name]) for s in shown]
        if all(regrets):
            text += f"; regret per token {', '.join(f'{spread(r)[0]:.3f}' for r in regrets)}"
        text += ")"
    return f"{text}."


def _score(task: TaskRuns, system: SystemRuns, name: str) -> str:
    """With the number of seeds, where others have more."""
    count = len(system.values(name))
    fewer = count < task.num_seeds and system.has_seeds
    return f"{system.score_text(name)}{f' (n = {count})' if fewer else ''}"


def _better_than_baseline(task: TaskRuns, name: str, baseline: str, alpha: float) -> list[str]:
    """Those that have a star in the tables, but for those that have a sentence of their own."""
    base = task.find(baseline)
    if base is None:
        return []
    others = [s for s in task.systems if s.is_student and s not in (base, *task.ours)]
    tests = [test for system in others if (test := seed_test(task, system, base, name, alpha))]
    better = [test for test in tests if test.better and test.significant(alpha)]
    if not better:
        return []
    names = joined([t.system for t in better])
    return [f"Better than {baseline}: {names} ({_bound(better, largest=True)})."]


def _bound(tests: Sequence[SeedTest], *, largest: bool) -> str:
    """The largest p-value of several, or the smallest."""
    p_values = [test.test.p_value or 0.0 for test in tests]
    sign = "=" if len(tests) == 1 else "≤" if largest else "≥"
    return f"p {sign} {p_text(max(p_values) if largest else min(p_values))}"


def _against_competitors(
    task: TaskRuns, label: str, tests: Sequence[SeedTest], *, baseline: str, alpha: float
) -> list[str]:
    """How BRIM compares: the names, and the p-value nearest to alpha."""
    tested = [t for t in tests if t.test.p_value is not None]
    if not tested:
        why = "no competitor shares two seeds with it"
        if task.num_seeds == 1:
            why = "its sentences cannot be compared with others', see what `brim compare` says"
        return [f"No test of {label}: {why}."] if tests else []
    groups = []
    for better in (True, False):
        found = [t for t in tested if t.better is better and t.significant(alpha)]
        if found:
            bound = _bound(found, largest=True)
            lost = [t.against for t in found if t.holm is not None and t.holm >= alpha]
            if lost:
                which = "" if len(lost) == len(found) else f" for {joined(lost)}"
                bound += f", not after Holm's correction{which}"
            word = "better" if better else "worse"
            groups.append(f"{word} than {joined([t.against for t in found])} ({bound})")
    ties = [t.against for t in tested if not t.significant(alpha) and t.tie]
    if ties:
        groups.append(f"in a tie with {joined(ties)}")
    even = [t for t in tested if not t.significant(alpha) and not t.tie]
    if even:
        names = [t.against for t in even]
        if len(names) > _MOST_NAMES:  # all that is not named elsewhere: it can be counted
            first = [name for name in names if name == baseline]
            names = [*first, f"{len(names) - len(first)} others"]
        bound = _bound(even, largest=False)
        groups.append(f"not significantly different from {joined(names)} ({bound})")
    pairs = sorted({t.test.num_pairs for t in tested})
    count = " to ".join(dict.fromkeys([f"{pairs[0]:,}", f"{pairs[-1]:,}"]))
    noun = "shared seed" if tested[0].over == "seeds" else "sentence"
    noun += "" if count == "1" else "s"
    of = "" if tested[0].over == "seeds" else " of one seed"
    return [f"{label} is {'; '.join(groups)}, over {count} {noun}{of}."]


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
        elif not found.significant(alpha) and found.tie:
            verdict = "ties with"
        elif not found.significant(alpha):
            verdict = "is not significantly different from"
        else:
            verdict = f"is {'better' if found.better else 'worse'} than"
        p = "" if p_value is None else f"p = {p_text(p_value)}, "
        sentences.append(
            f"{found.system} {verdict} {found.against} in {task.name_of(name)} ({p}"
            f"{found.test.difference:+.2f}, {many(found.test.num_pairs, found.over[:-1])})."
        )
    return sentences


def _choice_of_k(task: TaskRuns) -> list[str]:
    sentences = [f"{s.label} is LLMR: no choice." for s in task.brims if s.name.k == 1]
    same = [s for s in task.systems if s.is_llmr and s.name.k != 1]
    if same:
        sentences.append(
            f"{joined([s.label for s in same])}: {LLMR_HERE}, for half of the texts or more have "
            "no more tokens than K; no choice, and not tested against LLMR."
        )
    if len(task.choices) < 2 or task.has_a_k_twice:  # then `_choice_of_settings` says it
        return sentences
    chosen = task.best_brim()
    if chosen is None:
        shared = shared_seeds(with_enough_seeds(task.choices))
        why = "a validation score is not known" if shared else "the K share no seed"
        if task.sampled_otherwise(task.criterion):
            why = f"{task.name_of(task.criterion)} is of texts that were sampled in several ways"
        return [*sentences, f"No K is chosen: {why}."]
    text = f"K = {chosen.name.k} is chosen, by the validation {task.name_of(task.criterion)}"
    text += _over(task, task.choices)
    values = task.validation_by_k(task.criterion)
    best, digits = values.get(chosen.name.k or 0, 0.0), digits_of(task.criterion)
    ties = [f"K = {k}" for k, v in values.items() if round(v - best, digits) == 0]
    if len(ties) > 1:
        text += f", in which {joined(ties)} tie"
    on_test = task.best_students(task.criterion, task.choices)
    if on_test and chosen not in on_test:
        other = " or ".join(f"K = {s.name.k}" for s in on_test)
        text += f"; the {chosen.runs[0].split} split would have chosen {other}"
    return [*sentences, f"{text}."]


def _choice_of_settings(task: TaskRuns) -> list[str]:
    """Which setting of each method that has several is best on the validation split."""
    best = [(task.best_settings(systems), systems) for systems in task.with_several_settings]
    names = [" or ".join(s.label for s in chosen) + _over(task, systems)
             for chosen, systems in best if chosen]  # fmt: skip
    if not names:
        return []
    return [f"Best settings by the validation {task.name_of(task.criterion)}: {joined(names)}."]


def _over(task: TaskRuns, systems: Sequence[SystemRuns]) -> str:
    """Over how many seeds these were chosen from, where that are not all of them."""
    number = len(shared_seeds(with_enough_seeds(systems)))
    return "" if number == task.num_seeds else f" over {number} of {many(task.num_seeds, 'seed')}"


def _training(task: TaskRuns) -> list[str]:
    """Variance and bias of the K-step return, means over the training steps; LLMR is K = 1.

    Over the seeds that all of them have, for the student of one seed may vary far more than
    another's.
    """
    base = [s for s in task.systems if s.name.stem == "LLMR" and not s.decoding]
    systems = base + task.brims
    if len({system.name.k for system in systems}) < len(systems):
        return []  # some K is there twice, with other settings
    shared = shared_seeds(systems)
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


def _alarms(task: TaskRuns) -> list[str]:
    """Which monitors raised an alarm in how many runs of which systems."""
    found = []
    for kind in KINDS:
        for system in task.systems:
            if number := sum(bool(run.curve(f"monitor/{kind}")) for run in system.runs):
                runs = many(len(system.runs), "run")
                found.append(f"{kind} in {number} of {runs} of {system.label}")
    return [f"Alarms of monitors: {'; '.join(found)}."] if found else []


def _pair(task: TaskRuns) -> list[str]:
    """How long segments were, where the teacher reads text in other tokens than the student's."""
    runs = [run for system in task.systems for run in system.runs]
    keys = [f"rollout/{key}" for key in ("segment_length", "teacher_tokens", "unspelled")]
    found = [[value for run in runs for _, value in run.curve(key)] for key in keys]
    if not found[0]:
        return []
    mine, theirs, unspelled = (spread(values)[0] for values in found)
    return [
        "Teacher and student have different tokenizers: a segment of the text had "
        f"{mine:.1f} tokens of the student and {theirs:.1f} of the teacher, of which "
        f"{unspelled:.1%} stood for what it cannot spell."
    ]
