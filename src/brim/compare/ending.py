"""What a run came to, for a terminal: what it prints at its end, made of its directory alone."""

from __future__ import annotations

import io
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brim.compare.sentences import compare_runs
from brim.compare.write import printable
from brim.metrics import METRICS
from brim.runs.directory import Results, RunDirectory
from brim.runs.tested import StageName, find_tested, stage_folders
from brim.support.tables import ABSENT, interval_text, p_text, percent, score_format
from brim.training.predictions import Prediction

TABLE_WIDTH = 80
"""Columns that the tables have at most, however wide the terminal is."""
NUM_TEXTS = 5

_STARTS: dict[StageName, str] = {"predistill": "pre-distilled", "student": "as it was loaded"}
_PARAMETERS = "parameters"
_LONGEST_PROMPT = 60  # characters of a prompt that is worth copying


def ending(run: RunDirectory, *, split: str = "test", width: int | None = None) -> str:
    """Return teacher, start and student beside each other, with texts, places and next commands.

    What was tested of the three is shown (`evaluation.stages`). Scores have their intervals as far
    as there is room; signatures are in the files.

    Args:
        run: a run that has results.
        split: of the data.
        width: of the terminal; by default that of this one, 80 where there is none. Only paths and
            commands are longer.

    Raises:
        RunError: there are no results of the split, or files are damaged.
    """
    width = width or shutil.get_terminal_size((TABLE_WIDTH, 24)).columns
    narrow = min(width, TABLE_WIDTH)
    tested = find_tested(run, split)
    places = {"teacher" if n == "teacher" else "start": place for n, place in tested.items()}
    systems = {**places, "student": run.path}
    found = {name: RunDirectory(place).results(split) for name, place in systems.items()}
    keys = _keys(run, found["student"])
    parts = [
        _wrapped(_heading(run, found["student"], tested), narrow),
        _scores(found, keys, narrow),
        *([_differences(systems, keys, split, narrow)] if places else []),
        *_texts(systems, found["student"], split, width),
        _where(run, split),
        _next(run, systems, split),
    ]
    return "\n\n".join(parts)


def _heading(run: RunDirectory, own: Results, tested: Mapping[StageName, Path]) -> str:
    facts, method = own.facts, run.settings().get("objective", {}).get("name", "training")
    cut = {name: facts.get(f"num_truncated_{name}", 0) for name in ("prompts", "completions")}
    limits = f"; cut at the limits: {', '.join(f'{n:,} {name}' for name, n in cut.items())}"
    said = [f"{facts['split']} split: {own.num_examples:,} examples{limits * any(cut.values())}"]
    if "steps" in facts:
        early = f"; ended early: {facts['stopped']}" if "stopped" in facts else ""
        said.append(
            f"{method}, {facts['steps']:,} steps in {facts.get('seconds', 0):,.0f} s, best at step "
            f"{facts['best_step']:,}{early}"
        )
    said += [f"start: the student before {method}, {_STARTS[n]}" for n in tested if n in _STARTS]
    return "\n".join(said)


def _keys(run: RunDirectory, own: Results) -> list[str]:
    """The scores that are shown, the most telling first; regrets are in the files."""
    chosen = run.settings().get("evaluation", {}).get("metric")
    metrics = [key for key in own.scores if key in METRICS]
    wanted = [chosen, *metrics[:1], "expected_return", "return", "length", *metrics]
    return [key for key in dict.fromkeys(wanted) if key in own.scores]


def _scores(found: Mapping[str, Results], keys: Sequence[str], width: int) -> str:
    """A row a system. Columns that have no room are named; intervals are where there is room."""
    order = [*keys[:4], _PARAMETERS, *keys[4:]]
    shown = list(order)
    while len(shown) > 1 and not _fits(_score_table(found, shown, ()), width):
        shown.pop()
    intervals: list[str] = []
    for key in shown:
        if _fits(_score_table(found, shown, [*intervals, key]), width):
            intervals.append(key)
    lines = [_render(_score_table(found, shown, intervals), width)]
    scores = found["student"].scores
    if left := [scores[key].name for key in order if key not in shown and key in scores]:
        lines.append(_wrapped(f"no room here for {', '.join(left)}: see results.json", width))
    return "\n".join(lines)


def _score_table(
    found: Mapping[str, Results], keys: Sequence[str], intervals: Sequence[str]
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    scores = found["student"].scores
    for key in keys:
        name = _PARAMETERS if key == _PARAMETERS else scores[key].name
        down = key in scores and not scores[key].higher_is_better and key != "length"
        words = [_cut(word, 16) for word in name.split(" ")]
        words[-1] += " ↓" * down
        table.add_column(Text("\n".join(words)), justify="right", no_wrap=True, vertical="bottom")
    for name, one in found.items():
        cells = [name]
        for key in keys:
            score, number = one.scores.get(key), one.facts.get("num_parameters")
            if key == _PARAMETERS:
                cells.append(ABSENT if number is None else f"{number:,}")
            elif score is None:
                cells.append(ABSENT)
            else:
                ends = (score.low, score.high) if key in intervals else ()
                spec = score_format(key)
                cells.append(interval_text(score.value, *ends, spec=spec))
        table.add_row(*map(Text, cells))
    return table


def _differences(systems: Mapping[str, Path], keys: Sequence[str], split: str, width: int) -> str:
    """The student less the start and less the teacher, in lines of up to 60 columns."""
    run = RunDirectory(systems["student"])
    confidence = next(iter(run.results(split).scores.values())).confidence
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("paired by example")
    table.add_column(f"difference [{percent(confidence)} interval]", no_wrap=True)
    table.add_column("p", no_wrap=True)
    left_out = []
    for other in [name for name in ("start", "teacher") if name in systems]:
        compared = compare_runs(
            run.path, systems[other], split=split, confidence=confidence, num_sentences=0
        )
        table.add_row(f"student minus {other}")
        for key in keys:
            if key not in compared.metrics:
                continue
            metric, spec = compared.metrics[key], score_format(key, difference=True)
            difference = interval_text(metric.difference, metric.low, metric.high, spec=spec)
            p_value = p_text(metric.randomization_p)
            table.add_row(*map(Text, [f"  {_cut(metric.a.name, 20)}", difference, p_value]))
        for key, reason in compared.left_out.items():
            if key in keys:
                text = f"left out of student minus {other}: {key}: {reason}"
                left_out.append(_wrapped(printable(text), width))
    return "\n".join([_render(table, width), *left_out])


def _texts(systems: Mapping[str, Path], own: Results, split: str, width: int) -> Iterator[str]:
    """What each system wrote for a few examples of the split, each on one line."""
    count = own.num_examples
    rows = range(0, count, max(count // NUM_TEXTS, 1))[:NUM_TEXTS]
    written = {
        name: list(RunDirectory(place).predictions(split, count=count, at=set(rows)))
        for name, place in systems.items()
    }
    yield _wrapped(f"texts: {len(rows)} of the {count:,} examples, evenly spaced", width)
    for number, row in enumerate(rows):
        example: Prediction = written["student"][number]
        lines = {
            "prompt": example.prompt,
            "reference": example.references[0] if example.references else ABSENT,
            **{name: texts[number].texts[0] for name, texts in written.items()},
        }
        head = f"{row + 1}. {_cut(printable(example.id), width - 10)}"
        yield "\n".join([head, *(_text_line(name, text, width) for name, text in lines.items())])


def _text_line(name: str, text: str, width: int) -> str:
    shown = printable(text[: 4 * width]) or "(empty)"
    return f"  {name:9}  {_cut(shown, width - 13)}"


def _where(run: RunDirectory, split: str) -> str:
    places = {
        "best model": run.path / "best",
        "scores": run.path / "results.json",
        "texts": run.predictions_path(split),
        "curves": run.path / "metrics.jsonl",
        "tensorboard": run.path / "tensorboard",
    }
    stages = {folder.parent for folder in stage_folders(run).values()}
    lines = [f"  {name:11}  {place}" for name, place in places.items() if place.exists()]
    return "\n".join(["where things are", *lines, *(f"  {'stages':11}  {s}" for s in stages)])


def _next(run: RunDirectory, systems: Mapping[str, Path], split: str) -> str:
    """Commands that work as they are, with a prompt of the split where there is a short one."""
    path = shlex.quote(str(run.path))
    prompt = next((p for row in run.predictions(split) if _is_short(p := row.prompt)), None)
    given = "" if prompt is None else f"printf '%s\\n' {shlex.quote(prompt)} | "
    if "start" in systems:
        third = f"brim compare {path} {shlex.quote(str(systems['start']))}"
    else:
        third = f"brim evaluate {path} --split validation"
    commands = [f"brim report {path}", f"{given}brim generate {path}", third]
    return "\n".join(["next", *(f"  {command}" for command in commands)])


def _is_short(prompt: str) -> bool:
    return len(prompt) <= _LONGEST_PROMPT and prompt.isprintable() and "\\" not in prompt


def _cut(text: str, width: int) -> str:
    """A text in so many columns of a terminal, in which some characters take two."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def _fits(table: Table, width: int) -> bool:
    wide = Console(width=10_000)
    return wide.measure(table).maximum <= width


def _wrapped(text: str, width: int) -> str:
    return _render(Text(text), width)


def _render(what: Table | Text, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, no_color=True, force_terminal=False).print(what)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
