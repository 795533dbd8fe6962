"""Which runs are found, and which of them are one system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import DATA, SEEDS, make_folder, make_grid, results_of, rows_of
from rundirs import change_results, unseal, write_run

from brim.errors import RunError
from brim.report.folders import _failure
from brim.report.gather import gather
from brim.runs.directory import RunDirectory
from brim.runs.tested import results_folder

KL, LLMR = {"name": "kl"}, {"name": "llmr", "baseline": "none"}
SCORES = {"exact_match": 20.0, "return": 5.0, "length": 7.0}


def found(*roots: Path):
    gathered = gather(roots)
    return [
        (task.label, [(s.label, [run.seed for run in s.runs]) for s in task.systems])
        for task in gathered.tasks
    ], gathered


def test_runs_of_one_system_differ_in_the_seed_and_in_what_changes_no_result(tmp_path):
    for seed in (*SEEDS, 5):
        make_folder(tmp_path / "llmr" / f"{seed}", LLMR, seed, SCORES)
        make_folder(tmp_path / "sub" / "kl" / f"{seed}", KL, seed, SCORES)
    changes = {"trainer__micro_batch_tokens": 64, "teacher__batch_tokens": 9, "description": "x"}
    make_folder(tmp_path / "llmr" / "other", LLMR, 7, SCORES, **changes)
    (tmp_path / "notes.txt").write_text("not a run")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "config.yaml").write_text("no: run")
    groups, gathered = found(tmp_path)
    seeds = [*SEEDS, 5]
    assert groups == [("cmudict", [("KL", seeds), ("LLMR", [*SEEDS, 5, 7])])]
    assert not gathered.unfinished
    assert not gathered.notes


def test_a_folder_given_twice_counts_once(tmp_path):
    make_folder(tmp_path / "a" / "llmr", LLMR, 1, SCORES)
    _, gathered = found(tmp_path, tmp_path / "a", tmp_path / "a" / "llmr")
    assert len(gathered.tasks[0].systems[0].runs) == 1
    assert not gathered.notes


def test_the_same_run_made_twice_is_named(tmp_path):
    for name in ("a", "b"):
        make_folder(tmp_path / name, LLMR, 1, SCORES)
    groups, gathered = found(tmp_path)
    assert groups == [("cmudict", [("LLMR", [1])])]
    assert [str(tmp_path / "b") in note and "left out" in note for note in gathered.notes] == [True]


def test_settings_in_which_systems_differ_stand_in_brackets(tmp_path):
    make_folder(tmp_path / "a", LLMR, 1, SCORES)
    make_folder(tmp_path / "b", LLMR, 1, SCORES, optim__lr=0.01)
    make_folder(tmp_path / "c", KL, 1, SCORES)
    groups, _ = found(tmp_path)
    labels = [label for label, _ in groups[0][1]]
    assert labels == ["KL", "LLMR [lr = 0.001]", "LLMR [lr = 0.01]"]


def test_students_of_two_sizes_are_two_comparisons(tmp_path):
    for width in (8, 16):
        for objective in (KL, LLMR):
            build = {"family": "t5", "d_model": width}
            directory = tmp_path / f"{width}" / objective["name"]
            make_folder(directory, objective, 1, SCORES, student__build=build)
    groups, _ = found(tmp_path)
    systems = [("KL", [1]), ("LLMR", [1])]
    assert groups == [("cmudict [d_model = 16]", systems), ("cmudict [d_model = 8]", systems)]


def test_a_setting_that_older_runs_do_not_know_parts_nothing_unless_it_varies(tmp_path):
    evaluation = {"metric": None, "decoding": {"strategy": "greedy"}}
    make_folder(tmp_path / "old", LLMR, 1, SCORES)
    make_folder(tmp_path / "new", LLMR, 2, SCORES, evaluation=evaluation)
    groups, _ = found(tmp_path)
    assert groups == [("cmudict", [("LLMR", [2, 1][::-1])])]

    beam = {"metric": None, "decoding": {"strategy": "beam"}}
    make_folder(tmp_path / "beam", LLMR, 1, SCORES, evaluation=beam)
    groups, _ = found(tmp_path)
    assert [len(seeds) for _, seeds in groups[0][1]] == [1, 1, 1]


def test_null_is_not_taken_for_settings_that_are_there(tmp_path):
    make_folder(tmp_path / "a", LLMR, 1, SCORES)
    make_folder(tmp_path / "b", LLMR, 2, SCORES, teacher__train=None)
    groups, _ = found(tmp_path)
    assert len(groups) == 2


def test_unfinished_and_failed_runs_are_listed_with_how_far_they_came(tmp_path):
    make_folder(tmp_path / "llmr" / "seed=1", LLMR, 1, SCORES)
    steps = [{"step": step, "train/loss": 1.0} for step in range(1, 8)]
    under_way = make_folder(tmp_path / "kl" / "seed=1", KL, 1, None, metrics=steps)
    with (under_way / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "tra')  # a line that is being written
    make_folder(tmp_path / "kl" / "seed=2", KL, 2, None, metrics=[{"step": 20}])
    make_folder(tmp_path / "tvd" / "seed=1", {"name": "tvd"}, 1, None, metrics=steps)
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "tvd-seed=1.log"
    log.write_text("brim sweep: started\nTraceback\nbrim sweep: failed with exit code 2\n")
    waiting = tmp_path / "js" / "seed=3"
    waiting.mkdir(parents=True)
    (waiting / ".lock").touch()
    _, gathered = found(tmp_path)
    states = {(run.label, run.seed): run.state for run in gathered.unfinished}
    assert states == {
        ("KL", 1): "at step 7 of 20",
        ("KL", 2): "trained, without results of the test split",
        ("TVD", 1): f"failed with exit code 2 (see {log})",
        ("js", 3): "in the stages before its own training",
    }


def test_results_from_before_the_end_of_a_training_are_not_counted(tmp_path):
    make_folder(tmp_path / "llmr" / "seed=1", LLMR, 1, SCORES)
    for seed, more in ((2, {}), (3, {"planned_steps": 20})):
        under_way = make_folder(
            tmp_path / "llmr" / f"seed={seed}", LLMR, seed, None, metrics=[{"step": 11}]
        )
        results = results_of(SCORES, steps=11, **more)
        write_run(under_way, results=results)
    write_run(make_folder(tmp_path / "llmr" / "seed=4", LLMR, 4, None), results=results)
    other = write_run(tmp_path / "beam", results=results)
    groups, gathered = found(tmp_path)
    assert groups == [("cmudict", [("LLMR", [1])])]
    assert {run.seed: run.state for run in gathered.unfinished} == {
        2: "at step 11 of 20",
        3: "at step 11 of 20",
        4: "trained, but its results of the test split are of step 11 of 20",
    }
    assert gathered.notes == (
        f"{other}: left out, since its model is of step 11 of 20 of a training.",
    )


def test_systems_that_were_best_before_their_training_are_named(tmp_path):
    for seed in SEEDS:
        run = make_folder(tmp_path / "llmr" / f"{seed}", LLMR, seed, None)
        best = 0 if seed != SEEDS[0] else 20
        write_run(run, results=results_of(SCORES, best_step=best))
        make_folder(tmp_path / "kl" / f"{seed}", KL, seed, SCORES)
    _, gathered = found(tmp_path)
    assert gathered.notes == (
        "cmudict: LLMR: the best checkpoint of 2 of 3 runs is of step 0: no training is in what "
        "was tested there.",
    )


def test_teacher_and_students_of_the_stages_stand_beside_the_runs(tmp_path):
    for seed in SEEDS[:2]:
        stages = {"teacher": "teacher-abc", "predistill": f"predistill-{seed}"}
        manifest = {"stages_dir": "../../stages", "stages": stages}
        make_folder(tmp_path / "llmr" / f"{seed}", LLMR, seed, SCORES, manifest=manifest)
        make_folder(tmp_path / "kl" / f"{seed}", KL, seed, SCORES, manifest=manifest)
    for name in ("teacher-abc", f"predistill-{SEEDS[0]}", f"predistill-{SEEDS[1]}"):
        (tmp_path / "stages" / name / "best").mkdir(parents=True)
        (tmp_path / "stages" / name / "inputs.json").write_text("{}")
    for name in ("teacher-abc", f"predistill-{SEEDS[0]}"):
        write_run(tmp_path / "stages" / name, results=results_of(SCORES))
    groups, gathered = found(tmp_path)
    assert groups[0][1] == [
        ("Teacher", [None]),
        ("Pre-distilled student", [SEEDS[0]]),
        ("KL", [*SEEDS[:2]]),
        ("LLMR", [*SEEDS[:2]]),
    ]
    (note,) = gathered.notes
    assert f"Pre-distilled student of seed {SEEDS[1]}: not evaluated" in note
    assert "kl/34007 --stage predistill --split test`" in note


@pytest.mark.parametrize("reads", ["tokens", "text"])
def test_a_teacher_that_reads_text_has_no_numbers_by_token(tmp_path, reads):
    by_token = {"return": 3.0, "regret_per_token": 0.5, "length": 7.0}
    manifest = {"stages_dir": "../stages", "stages": {"teacher": "teacher-abc"}}
    make_folder(tmp_path / "run", LLMR, 1, by_token, manifest=manifest, predictions=False,
                teacher__reads=reads)  # fmt: skip
    results = results_of(by_token, mean_regrets={"return": [0.5] * 7})
    write_run(tmp_path / "stages" / "teacher-abc", results=results)
    (task,) = gather([tmp_path]).tasks
    (teacher,) = task.find("Teacher").runs
    mine = {*by_token} if reads == "tokens" else {"return", "length"}
    assert teacher.scores.keys() == mine
    assert ("mean_regrets" in teacher.results) == (reads == "tokens")


@pytest.mark.parametrize(
    ("teacher", "seeds"),
    [
        ({"path": "t5", "train": None, "seed": None}, [None]),  # loaded, whatever the seed
        ({"path": "t5", "train": {}, "seed": 0}, [None]),
        ({"path": "t5", "train": {}, "seed": None}, [*SEEDS[:2]]),  # the returns are its own
    ],
)
def test_a_loaded_student_has_a_run_for_each_teacher(tmp_path, teacher, seeds):
    for seed in SEEDS[:2]:
        name = f"student-{'one' if seeds == [None] else seed}"
        manifest = {"stages_dir": "../stages", "stages": {"student": name}}
        make_folder(tmp_path / f"{seed}", LLMR, seed, SCORES, manifest=manifest, teacher=teacher)
        (tmp_path / "stages" / name).mkdir(parents=True, exist_ok=True)
    _, gathered = found(tmp_path)
    assert len(gathered.notes) == len(seeds)
    assert all("--stage student --split test`" in note for note in gathered.notes)
    for folder in (tmp_path / "stages").iterdir():
        write_run(folder, results=results_of(SCORES))
    groups, gathered = found(tmp_path)
    assert groups[0][1] == [("Student", seeds), ("LLMR", [*SEEDS[:2]])]
    assert not gathered.notes


def test_a_loaded_student_that_was_decoded_in_two_ways_has_two_rows(tmp_path):
    teacher = {"path": "t5", "train": None}
    for number, decoding in enumerate(({}, {}, {"max_tokens": 40})):
        limits = {"max_tokens": 30, "max_prompt_tokens": 9, **decoding}
        manifest = {"stages_dir": "../stages", "stages": {"student": f"student-{number}"}}
        run = make_folder(
            tmp_path / f"{number}", [LLMR, KL, {"name": "js"}][number], 1, SCORES,
            manifest=manifest, teacher=teacher, decoding=limits,
        )  # fmt: skip
        results = results_of(SCORES, decoding={"strategy": "greedy", **limits})
        for place in (run, tmp_path / "stages" / f"student-{number}"):
            write_run(place, results=results)
    groups, _ = found(tmp_path)
    students = [system for system in groups[0][1] if system[0].startswith("Student")]
    assert students == [("Student", [None]), ("Student [max_tokens = 40]", [None])]


def test_a_model_that_was_evaluated_alone_stands_beside_runs_of_the_same_data(tmp_path):
    make_folder(tmp_path / "llmr", LLMR, 1, SCORES)
    for name, sha in (("teacher", DATA), ("student", DATA), ("elsewhere", "6" * 64)):
        results = results_of(SCORES) | {"data": {"sha256": sha}}
        write_run(tmp_path / name, rows=rows_of(name), results=results)
    groups, _ = found(tmp_path)
    assert groups[0][1] == [("Teacher", [None]), ("Student", [None]), ("LLMR", [1])]


def test_a_stage_stands_beside_runs_with_its_results_on_their_data(tmp_path):
    """Two runs that share a stage and were tested on two files."""
    stage = tmp_path / "stages" / "predistill-1"
    manifest = {"stages_dir": "../stages", "stages": {"predistill": stage.name}}
    means = {}
    for number, (objective, sha) in enumerate([(LLMR, DATA), (KL, "6" * 64)]):
        run = make_folder(tmp_path / f"run{number}", objective, 1, SCORES, manifest=manifest)
        data = {"sha256": sha, "num_examples": 6}
        change_results(run, data=data)
        place = results_folder(stage, RunDirectory(run).results("test"), "test")
        assert (place == stage) == (number == 0)
        if number:
            _, gathered = found(tmp_path)  # the other file's numbers are not taken
            assert any("predistill --split test`" in note for note in gathered.notes)
        means[sha] = 50.0 + number
        results = results_of({**SCORES, "exact_match": means[sha]}, data=data)
        write_run(place, rows=rows_of("start"), results=results)
    for task in gather([tmp_path]).tasks:
        (own,) = [s for s in task.systems if s.name.family != "student"]
        sha = own.runs[0].results["data"]["sha256"]
        assert task.find("Pre-distilled student").values("exact_match") == [means[sha]]


def test_a_model_alone_has_no_return_by_another_teacher(tmp_path):
    for name in ("llmr", "kl"):
        make_folder(tmp_path / name, LLMR if name == "llmr" else KL, 1, SCORES)
        change_results(tmp_path / name, teacher="a" * 64)
    for name, teacher in (("same", "a" * 64), ("other", "b" * 64), ("older", None)):
        facts = {} if teacher is None else {"teacher": teacher}
        write_run(tmp_path / name, rows=rows_of(name), results=results_of(SCORES, **facts))
    (task,) = gather([tmp_path]).tasks
    scores = {s.label: {*s.runs[0].scores} for s in task.systems}
    assert scores["same"] == scores["older"] == scores["LLMR"] == {*SCORES}
    assert scores["other"] == {*SCORES} - {"return"}


def test_the_criterion_is_what_picked_the_checkpoints(tmp_path):
    def criterion(root):
        (task,) = gather([root]).tasks
        return task.criterion

    make_folder(tmp_path / "said", LLMR, 1, SCORES, manifest={"criterion": "return"})
    assert criterion(tmp_path / "said") == "return"
    # Of runs that do not say it, validation without targets was by the return.
    curve = [{"step": 20, "eval/return": 3.0}]
    make_folder(tmp_path / "old", LLMR, 1, SCORES, metrics=curve)
    assert criterion(tmp_path / "old") == "return"
    make_folder(tmp_path / "usual", LLMR, 1, SCORES, validation={"exact_match": 3, "return": 2})
    assert criterion(tmp_path / "usual") == "exact_match"
    settings = {"evaluation__metric": "ter"}
    make_folder(tmp_path / "asked", LLMR, 1, SCORES, manifest={"criterion": "ter"}, **settings)
    assert criterion(tmp_path / "asked") == "ter"


def test_a_report_among_the_folders_is_no_run(tmp_path):
    make_folder(tmp_path / "llmr", LLMR, 1, SCORES)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text('{"split": "test", "tasks": []}')
    groups, _ = found(tmp_path)
    assert groups == [("cmudict", [("LLMR", [1])])]


def test_what_cannot_be_read_is_named_on_one_line(tmp_path):
    with pytest.raises(RunError, match=r"nowhere: no such folder"):
        gather([tmp_path / "nowhere"])
    with pytest.raises(RunError, match=r"no finished run, 0 unfinished"):
        gather([tmp_path])
    run = unseal(make_folder(tmp_path / "llmr", LLMR, 1, SCORES))
    with pytest.raises(RunError, match=r"1 unfinished.*validation split"):
        gather([tmp_path], split="validation")
    (run / "results.json").write_text('{"test": {"scores": {"bleu": {"value": 1}}}}')
    with pytest.raises(RunError, match=r"results.json: damaged"):
        gather([tmp_path])
    (run / "results.json").write_text("{")
    with pytest.raises(RunError, match=r"results.json: cannot be read"):
        gather([tmp_path])
    (run / "config.yaml").write_text("seed: 1\nseed: 2\n")
    (run / "results.json").unlink()
    with pytest.raises(RunError, match=r"config.yaml:2: seed: given twice"):
        gather([tmp_path])


def kind_of(root: Path) -> str:
    return gather([root]).tasks[0].kind


def test_the_kind_of_student_is_read_and_never_guessed_from_a_name(tmp_path):
    stages = {"stages_dir": "../stages", "stages": {"predistill": "predistill-1"}}
    loaded = {"path": str(tmp_path / "t5-like"), "build": None}
    run = make_folder(
        tmp_path / "run", LLMR, 1, SCORES, student=loaded, manifest=stages, predictions=False
    )
    assert kind_of(run) == "unknown"
    # The nearest saved configuration decides: of the student, of its pre-distilled, of its own.
    for place, both in (
        (tmp_path / "t5-like", True),
        (tmp_path / "stages" / "predistill-1" / "best", False),
        (run / "best", True),
    ):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"is_encoder_decoder": both}))
        assert kind_of(run) == ("encoder-decoder" if both else "decoder-only")


@pytest.mark.parametrize(
    ("family", "kind"),
    [("t5", "encoder-decoder"), ("mt5", "encoder-decoder"), ("qwen2", "decoder-only")],
)
def test_the_kind_of_a_student_that_was_built_is_its_familys(tmp_path, family, kind):
    cut = {"path": None, "build": None, "keep_layers": 2}  # of the teacher's layers
    build = {"family": family}
    make_folder(tmp_path / "built", LLMR, 1, SCORES, student__build=build)
    make_folder(tmp_path / "cut", LLMR, 1, SCORES, student=cut, teacher__build=build)
    assert kind_of(tmp_path / "built") == kind_of(tmp_path / "cut") == kind


def test_intervals_of_several_confidences_are_refused(tmp_path):
    first = make_folder(tmp_path / "a", LLMR, 1, {"exact_match": 20.0})
    second = make_folder(tmp_path / "b", KL, 1, {"exact_match": 21.0})
    facts = RunDirectory(second).splits("test")["test"]
    facts["scores"]["exact_match"]["confidence"] = 0.9
    change_results(second, **facts)
    with pytest.raises(RunError, match=r"a/results\.json: .* another confidence .*b; evaluate"):
        found(first, second)


def test_runs_behind_a_link_are_found_once(tmp_path):
    make_grid(tmp_path / "disk", systems=("llmr", "kl"))
    root = tmp_path / "sweep"
    root.mkdir()
    (root / "llmr").symlink_to(tmp_path / "disk" / "llmr")
    (root / "again").symlink_to(tmp_path / "disk" / "llmr")
    (root / "loop").symlink_to(root)
    (task,) = gather([root]).tasks
    assert [(s.label, len(s.runs)) for s in task.systems] == [("LLMR", len(SEEDS))]


def test_a_run_at_the_top_of_the_disk_has_no_sweep():
    assert _failure(Path("/nowhere")) is None
