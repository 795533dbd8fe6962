"""What a judge said of pairs of systems, as `brim judge` wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brim.errors import RunError
from brim.metrics import spread
from brim.report import paper_numbers as the_paper
from brim.report.systems import TaskRuns
from brim.support.files import read_json
from brim.support.tables import ABSENT, Cell, Table, interval_text, mean_text


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """One `judge.json`, seen from the system that is judged against KL where one is.

    Attributes:
        task: label of the task of both systems.
        system, against: labels.
        criteria: by name, win rate of `system` in per cent, its interval and its warnings.
        judge: the model.
        path: of the file.
        runs: the directories of the two.
        asked: templates by criterion, and whether texts kept their lines.
    """

    task: str
    system: str
    against: str
    criteria: Mapping[str, Mapping[str, Any]]
    judge: str
    path: Path
    runs: frozenset[Path]
    asked: tuple[Any, ...]

    @property
    def num_pairs(self) -> int:
        """The most pairs of texts that were judged by a criterion."""
        return max((numbers["num_pairs"] or 0 for numbers in self.criteria.values()), default=0)


def read_verdicts(
    paths: Sequence[Path], tasks: Sequence[TaskRuns], split: str, notes: list[str]
) -> list[Verdicts]:
    """Read those about systems of the report on its split; `notes` says of the others why not."""
    places = {
        (run.directory.resolve(), run.split): (task.label, system.label)
        for task in tasks
        for system in task.systems
        for run in system.runs
    }
    found = []
    for path in paths:
        try:
            verdicts = _read(path, places, split)
        except (RunError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{path}: left out, for it cannot be read as verdicts ({error!r}).")
            continue
        if verdicts is None:
            notes.append(
                f"{path}: left out, for it is not about two systems of this report on the {split} "
                "split."
            )
        else:
            found.append(verdicts)
    return _once(found, notes)


def _once(found: Sequence[Verdicts], notes: list[str]) -> list[Verdicts]:
    """One verdict of each pair of runs, on the most texts; a system's all asked alike.

    `notes` says of the others why not.
    """
    kept: dict[tuple[str, frozenset[Path]], Verdicts] = {}
    asked: dict[tuple[str, ...], Verdicts] = {}
    for one in sorted(found, key=lambda v: v.num_pairs, reverse=True):
        first = asked.setdefault((one.task, one.system, one.against, one.judge), one)
        if one.asked != first.asked:
            notes.append(f"{one.path}: left out, for it was asked otherwise than {first.path}.")
        elif (other := kept.setdefault((one.judge, one.runs), one)) is not one:
            notes.append(f"{one.path}: left out, for {other.path} is of the same two runs.")
    return [one for one in found if one in kept.values()]


def _read(
    path: Path, places: Mapping[tuple[Path, str], tuple[str, str]], split: str
) -> Verdicts | None:
    data = read_json(path)
    judged = data.get("split", split)
    runs = [(path.parent / data[side]["directory"]).resolve() for side in "ab"]
    a, b = (places.get((run, judged)) for run in runs)
    if a is None or b is None or a[0] != b[0]:
        return None
    turned = a[1] == the_paper.TABLE3_BASELINE
    criteria = {name: _numbers(fields, turned) for name, fields in data["criteria"].items()}
    system, against = (b[1], a[1]) if turned else (a[1], b[1])
    judge = data.get("judge", {})
    return Verdicts(
        task=a[0],
        system=system,
        against=against,
        criteria=criteria,
        judge=str(judge.get("model", "unknown")),
        path=path,
        runs=frozenset(runs),
        asked=(data.get("templates"), data.get("keep_lines")),
    )


def _numbers(fields: Mapping[str, Any], turned: bool) -> dict[str, Any]:
    """In per cent, of the other side where `turned`."""
    rate, low, high = (
        None if fields.get(name) is None else 100 * float(fields[name])
        for name in ("win_rate", "low", "high")
    )
    if turned and rate is not None and low is not None and high is not None:
        rate, low, high = 100 - rate, 100 - high, 100 - low
    biases = ("position_biased", "id_biased")
    flags = [name.replace("_", " ") for name in biases if fields.get(name)]
    return {"rate": rate, "low": low, "high": high, "warnings": flags} | {
        name: fields.get(name) for name in ("num_pairs", "num_incomplete")
    }


def judge_table(
    found: Sequence[Verdicts], tasks: Sequence[TaskRuns], *, paper: bool = False
) -> Table | None:
    """Return win rates by criterion (Table 3), means over the judged seeds; None without any."""
    if not found:
        return None
    names = list(dict.fromkeys(name for verdicts in found for name in verdicts.criteria))
    known = [name for name in the_paper.TABLE3_CRITERIA if name in names]
    names = known + [name for name in names if name not in known]
    judges = list(dict.fromkeys(verdicts.judge for verdicts in found))
    groups: dict[tuple[str, str, str, str], list[Verdicts]] = {}
    for verdicts in found:
        key = (verdicts.task, verdicts.system, verdicts.against, verdicts.judge)
        groups.setdefault(key, []).append(verdicts)
    by_label = {task.label: task for task in tasks}
    rows, data = [], []
    for (label, system, against, judge), group in groups.items():
        cells = []
        for name in names:
            cell, row = _cell(by_label[label], system, against, name, group, paper=paper)
            cells.append(cell)
            data.append({"table": "table3", "task": label, "system": system, "judge": judge, **row})
        note = f"by {judge}" if len(judges) > 1 else ""
        rows.append((Cell(label), Cell(system, note=note), Cell(against), *cells))
    caption = (
        "Win rate in per cent, ties half a win, with its Wilson interval over pairs of texts, or "
        f"mean ± standard deviation over seeds. Judge: {', '.join(judges)}. A judge that prefers a "
        "place or an ID is marked."
    )
    if paper:
        caption += " In small print the paper's numbers (Qwen2.5-72B-Instruct)."
    head = ("task", "system", "against", *(name.capitalize() for name in names))
    return Table("table3", "Win rates", head, tuple(rows), caption, data)


def _cell(
    task: TaskRuns, system: str, against: str, name: str, group: Sequence[Verdicts], *, paper: bool
) -> tuple[Cell, dict[str, Any]]:
    found = [v.criteria[name] for v in group if name in v.criteria]
    rates = [numbers["rate"] for numbers in found if numbers["rate"] is not None]
    notes = list(dict.fromkeys(flag for numbers in found for flag in numbers["warnings"]))
    best = task.best_brim()
    printed = "BRIM" if best is not None and system == best.label else system
    is_paper = paper and against == the_paper.TABLE3_BASELINE
    number = the_paper.table3(task.name, name).get(printed) if is_paper else None
    if number is not None:
        notes.append(f"paper {number:.2f}")
    row: dict[str, Any] = {"against": against, "criterion": name, "num_runs": len(rates)}
    row |= {"mean": None, "sd": None, "low": None, "high": None, "paper": number}
    if not rates:
        return Cell(ABSENT, note=", ".join(notes)), row
    row["mean"], row["sd"] = mean, deviation = spread(rates)
    text = mean_text(mean, deviation)
    if deviation is None:
        row |= {end: found[0][end] for end in ("low", "high")}
        text = interval_text(mean, found[0]["low"], found[0]["high"])
    return Cell(text, note=", ".join(notes)), row
