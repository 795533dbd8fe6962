"""What is trained is float32: in a coarser type most updates are lost in rounding."""

import pytest
import torch
from accelerate import Accelerator
from pairs import LLAMA
from torch import nn

from brim.config.yaml import parse
from brim.errors import ConfigError
from brim.models import build_model, train_tokenizer
from brim.plan import plan
from brim.runs.inputs import RunInputs
from brim.runs.models import load_checked
from brim.runs.stages import make_teacher, untrained_student
from brim.runs.train import train
from brim.training.loop_settings import OptimConfig
from brim.training.optimizer import build_optimizer

LOADED = ("teacher.build=null", "teacher.tokenizer=null", "student.build=null")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a model by the type of its weights."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["write 12 in Roman numerals: XII"], kind="bpe", vocab_size=300)
    model = build_model(parse(LLAMA, str).data, tokenizer, seed=0)
    for name in ("float32", "float16", "bfloat16"):
        model.to(getattr(torch, name)).save(root / name)
    return root


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("asked", ["auto", "stored"])
def test_a_coarse_type_is_refused_by_plan_and_train(
    make_config, folders, tmp_path, role, stored, asked
):
    other = "teacher" if role == "student" else "student"
    config = make_config(
        LLAMA, *LOADED, f"{role}.path={folders / stored}", f"{other}.path={folders / 'float32'}",
        f"{role}.dtype={stored if asked == 'stored' else 'auto'}",
    )  # fmt: skip
    for refuse in (plan, lambda config: train(config, tmp_path / "run")):
        with pytest.raises(ConfigError, match=rf"^{role}\.dtype: .*{stored}.*trainer\.precision"):
            refuse(config)
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_trained_and_adapters_are_not_refused(make_config, folders, tmp_path):
    pytest.importorskip("peft")
    path = folders / "bfloat16"
    config = make_config(
        LLAMA, *LOADED, f"teacher.path={path}", f"student.path={path}", "teacher.dtype=bfloat16",
        "student.dtype=auto", "teacher.train=null", "student.lora={r: 2}",
    )  # fmt: skip
    plan(config)
    _, student, _ = load_checked(RunInputs(config, tmp_path, Accelerator(), tmp_path / "stages"))
    assert student.model.model.dtype == torch.bfloat16


def test_the_layers_of_a_coarse_teacher_are_trained_in_float32(make_config, folders, tmp_path):
    config = make_config(
        LLAMA, *LOADED, f"teacher.path={folders / 'bfloat16'}", "teacher.dtype=auto",
        "teacher.train=null", "student.keep_layers=1",
    )  # fmt: skip
    plan(config)
    run = RunInputs(config, tmp_path, Accelerator(), tmp_path / "stages")
    loaded, none, _ = load_checked(run)
    assert none is None
    teacher = make_teacher(run, loaded).model
    student = untrained_student(run, None, teacher).model
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}


def test_no_optimizer_is_made_of_coarse_weights():
    """An update of 1e-5 moves a float32 weight of 0.1, and no bfloat16 one."""
    for dtype, moves in ((torch.float32, True), (torch.bfloat16, False)):
        weight = torch.full((3,), 0.1, dtype=dtype)
        assert bool((weight - 1e-5 != weight).all()) == moves
        layer = nn.Linear(2, 2).to(dtype)
        if moves:
            build_optimizer(layer, OptimConfig())
        else:
            with pytest.raises(ConfigError, match="bfloat16 weights"):
                build_optimizer(layer, OptimConfig())
