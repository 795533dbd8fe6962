"""A sweep's plan is the plans of its runs, with the stages that they share counted once."""

import json
import re
from pathlib import Path

import pytest
from makers import configure
from typer.testing import CliRunner

from brim.cli import app
from brim.plan import plan, plan_sweep, sweep_as_text
from brim.sweep import Point, load_sweep, points

ROOT = Path(__file__).parents[3]
GIB = 2**30
SWEEP = """
seeds: [1, 2]
settings: {teacher.seed: 0}
systems:
  llmr: {recipe: cmudict/llmr}
  brim: {recipe: cmudict/brim, grid: {objective.k: [2, 4]}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


def operations(method):
    stages = plan(configure(f"cmudict/{method}")).stages
    return {stage.name: stage.total_operations for stage in stages}


def test_shared_stages_count_once_and_systems_once_a_seed(file):
    found = plan_sweep(points(load_sweep(file)), tflops=2)
    assert [(row.name, row.count) for row in found.stages] == [
        ("teacher of llmr", 1),
        ("teacher_outputs of llmr", 1),
        ("predistill of llmr", 2),
    ]
    assert [(row.name, row.count) for row in found.systems] == [
        ("llmr", 2),
        ("brim-k=2", 2),
        ("brim-k=4", 2),
    ]
    llmr, brim = operations("llmr"), operations("brim")
    total = llmr["teacher"] + llmr["teacher_outputs"] + 2 * llmr["predistill"]
    assert found.operations == total + 2 * llmr["llmr"] + 4 * brim["brim"]
    assert found.device_days == pytest.approx(found.operations / 2e12 / 86_400)


def test_a_sweep_may_have_its_systems_from_another_file(file, brim_says):
    other = file.with_name("other.yaml")
    other.write_text("extends: mine.yaml\nseeds: [7]\n", encoding="utf-8")
    code, out, err = brim_says("plan", other)
    assert (code, err) == (0, "")
    assert "brim-k=4" in out


def test_a_teacher_a_seed_is_counted_for_each(file):
    file.write_text(SWEEP.replace("teacher.seed: 0", ""), encoding="utf-8")
    rows = plan_sweep(points(load_sweep(file))).stages
    assert {row.name: row.count for row in rows} == {
        "teacher of llmr": 2,
        "teacher_outputs of llmr": 2,
        "predistill of llmr": 2,
    }


def test_a_size_has_a_student_of_its_own(file):
    more = SWEEP.replace("systems:", "grid: {student.build.d_model: [16, 32]}\nsystems:")
    file.write_text(more, encoding="utf-8")
    found = plan_sweep(points(load_sweep(file)))
    names = [row.name for row in found.stages if row.name.startswith("predistill")]
    assert names == ["predistill of llmr-d_model=16", "predistill of llmr-d_model=32"]
    small, large = (row for row in found.systems if row.name.startswith("llmr"))
    assert small.update_bytes < large.update_bytes


def test_devices_share_the_memory_and_not_the_operations(file):
    runs = points(load_sweep(file))
    one, two = plan_sweep(runs), plan_sweep(runs, devices=2)
    assert two.operations == pytest.approx(one.operations, rel=0.02)
    assert two.operations >= one.operations


def test_the_command_prints_tables_and_a_total(file):
    runner = CliRunner()
    shown = runner.invoke(app, ["plan", str(file), "--memory", "0.001", "--tflops", "1"])
    assert shown.exit_code == 0, shown.output
    assert "6 runs: " in shown.output
    assert "device-days at 1 teraFLOP/s" in shown.output
    assert re.search(r"warning: brim-k=2 and 1 more: brim: update needs .* GiB", shown.output)
    found = json.loads(runner.invoke(app, ["plan", str(file), "--json"]).output)
    assert found["operations"] == sum(
        row["operations"] for row in [*found["stages"], *found["systems"]]
    )
    assert found["device_days"] is None
    refused = runner.invoke(app, ["plan", str(file), "objective.k=3"])
    assert "takes no settings" in str(refused.exception)


def test_what_is_not_known_is_said():
    config = configure("xsum/kl", "task.max_train_examples=null")
    found = plan_sweep([Point(1, "kl", 0, "xsum/kl", (), config)], tflops=1)
    assert (found.operations, found.device_days) == (None, None)
    assert "operations are not known" in sweep_as_text(found)


# The systems that need most.
@pytest.mark.parametrize("name", ["paper_t5", "paper_sizes", "paper_qwen"])
@pytest.mark.filterwarnings("ignore:greedy rollouts")
def test_the_papers_sweeps_fit_the_memory_that_they_name(name):
    path = ROOT / "docs" / "results" / f"{name}.yaml"
    (limit,) = re.findall(r"--memory (\d+)", path.read_text(encoding="utf-8"))
    sweep = load_sweep(path)
    names = {"xsum_kl", "gsm8k_kl", "brim"} & set(sweep.systems)
    largest = {name: sweep.systems[name] for name in names}
    few = sweep.model_copy(update={"seeds": (0,), "systems": largest})
    found = plan_sweep(points(few), memory_limit=float(limit))
    assert found.stages
    assert max(row.peak_bytes for row in (*found.stages, *found.systems)) < float(limit) * GIB
    assert not any("GiB" in warning for warning in found.warnings)
