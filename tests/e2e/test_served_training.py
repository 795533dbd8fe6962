"""Training against `brim serve` ends in the weights of the same teacher in process."""

from pathlib import Path

import pytest
import torch
from pairs import LLAMA, T5
from safetensors.torch import load_file
from serving import serving

from brim.config.loading import load_config
from brim.models import load_model
from brim.runs.train import train
from brim.training.settings import RunConfig

pytest.importorskip("brim.models.server", reason="the client is on a branch of its own")

RECIPE = """\
task: {{name: files, train: {data}/train.jsonl, validation: {data}/validation.jsonl,
       test: {data}/test.jsonl, prompt: "write {{number}} in Roman numerals:",
       target_column: roman, metrics: [exact_match], max_train_examples: 16}}
teacher: {teacher}
student: {{build: {student}}}
objective: {objective}
decoding: {{max_prompt_tokens: 40, max_tokens: 8}}
# A large epsilon: an update is smooth in the gradient, where rounding decides no sign.
optim: {{lr: 1e-2, eps: 1e-2}}
trainer: {{max_steps: 2, rollout_batch_size: 8, evaluate_every: 2}}
evaluation: {{num_samples: 0, max_validation_examples: 4, expected_returns: false}}
"""
MODELS = {"t5": T5, "llama": LLAMA}
OBJECTIVES = {
    "none": "{name: llmr, q_centering: none, truncated: drop}",
    "mean": "{name: brim, k: 2, q_centering: mean, truncated: bootstrap}",
    "logsumexp": "{name: anchored, immediate: sampled, expected_regrets: false}",
    "text": "{name: seqkd}",
}


@pytest.fixture(scope="module", params=MODELS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def teacher(kind, make_config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp(kind)
    one = ("teacher.train.trainer.max_steps=1", "teacher.train.trainer.evaluate_every=1")
    config = make_config(MODELS[kind], *one, "student.predistill=null", "trainer.max_steps=1")
    train(config, out / "run", stages_dir=out / "stages")
    (stage,) = (path.parent for path in (out / "stages").glob("teacher-*/best"))
    return stage / "best"


@pytest.mark.parametrize("method", OBJECTIVES)
def test_weights_are_those_of_the_teacher_in_process(kind, teacher, numerals, tmp_path, method):
    with serving(load_model(teacher)) as served:
        own = f"{{path: {teacher}}}"
        behind = f"{{server: '{served.url}', model: tiny, tokenizer: {{path: {teacher}}}}}"
        found = {}
        for name, source in {"own": own, "behind": behind}.items():
            path = tmp_path / f"{name}.yaml"
            objective = OBJECTIVES[method]
            settings = {"teacher": source, "student": MODELS[kind], "objective": objective}
            path.write_text(RECIPE.format(data=numerals, **settings))
            train(load_config(RunConfig, path), tmp_path / name, stages_dir=tmp_path / "stages")
            found[name] = load_file(tmp_path / name / "best" / "model.safetensors")
        assert served.worker.num_passes > 0
    for name, weights in found["own"].items():
        torch.testing.assert_close(found["behind"][name], weights, rtol=0, atol=1e-4, msg=name)
