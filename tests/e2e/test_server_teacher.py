"""Runs with a teacher behind a server end in the weights of the same teacher in process."""

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from listening import Listener
from pairs import LLAMA, T5, stopping
from safetensors.torch import load_file
from standin import StandIn, serving

from brim.config.loading import load_config
from brim.errors import AwayError, ConfigError, DataError, RunError
from brim.models import build_model, load_model
from brim.models.loading import load_tokenizer
from brim.plan.plan import plan
from brim.plan.render import as_text
from brim.report.report import write_reports
from brim.runs.evaluate import evaluate_run
from brim.runs.stage_results import evaluate_stages
from brim.runs.train import train
from brim.training.settings import RunConfig
from brim.training.trainer import Interrupted

RECIPE = """\
task: {{name: files, train: {data}/train.jsonl, validation: {data}/validation.jsonl,
       test: {data}/test.jsonl, prompt: "write {{number}} in Roman numerals:",
       target_column: roman, metrics: [exact_match], max_train_examples: 24}}
teacher: {teacher}
student: {{build: {student}}}
objective: {objective}
decoding: {{max_prompt_tokens: 40, max_tokens: 8}}
# A large epsilon: an update is smooth in the gradient, where rounding decides no sign.
optim: {{lr: 1e-2, eps: 1e-2}}
trainer: {{max_steps: 3, rollout_batch_size: 8, evaluate_every: 3, save_every: 1}}
evaluation: {{num_samples: 0, max_validation_examples: 4, expected_returns: false}}
"""
STUDENTS = {"llama": LLAMA, "t5": T5, "wide": LLAMA}
VLLM = "BRIM_VLLM_PYTHON"
LLMR = "{name: llmr, q_centering: logsumexp}"


@pytest.fixture(scope="module")
def teachers(make_config, tmp_path_factory):
    """A folder of a teacher of each kind."""
    folders = {}
    for name, model in {"llama": LLAMA, "t5": T5}.items():
        out = tmp_path_factory.mktemp(name)
        one = ("teacher.train.trainer.max_steps=1", "teacher.train.trainer.evaluate_every=1")
        config = make_config(model, *one, "student.predistill=null", "trainer.max_steps=1")
        train(config, out / "run", stages_dir=out / "stages")
        [stage] = [p.parent for p in (out / "stages").glob("teacher-*/best")]
        teacher = load_model(stage / "best")
        for parameter in teacher.model.parameters():
            parameter.data *= 1.5  # logits that differ
        teacher.save(folder := out / "model")
        folders[name] = folder
    return folders


@pytest.fixture
def configure(numerals, teachers, tmp_path):
    """`configure(url or None, objective, *overrides)` is a run's settings."""

    def make(url, objective=LLMR, *overrides, kind="llama"):
        folder = teachers[kind]
        teacher = f"{{path: {folder}}}"
        if url is not None:
            teacher = (
                f"{{server: '{url}', model: tiny, tokenizer: {{path: {folder}}}, requests: "
                "{timeout: 5, max_retries: 2, tokens: 100, concurrency: 4}}"
            )
        text = RECIPE.format(
            data=numerals, teacher=teacher, student=STUDENTS[kind], objective=objective
        )
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_config(RunConfig, path, overrides)

    return make


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr("brim.models.http.FIRST_WAIT", 0.001)


@pytest.fixture
def standin(teachers):
    server = StandIn(load_model(teachers["llama"]))
    with serving(server):
        yield server


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step-3" / "model.safetensors")


def assert_same_weights(one: Path, other: Path, *, exact: bool = False) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=0, atol=0 if exact else 1e-4, msg=name
        )


METHODS = {
    "llmr": LLMR,
    "brim": "{name: brim, k: 2, q_centering: logsumexp, truncated: bootstrap}",
    "anchored": "{name: anchored, immediate: sampled, expected_regrets: false}",
    "ppo": "{name: ppo_brim, k: 2, q_centering: max, num_epochs: 1, num_minibatches: 1}",
    "seqkd": "{name: seqkd}",
}


@pytest.mark.parametrize("method", METHODS)
def test_methods(configure, standin, tmp_path, method):
    config = configure(standin.url, METHODS[method])
    results = train(config, tmp_path / "served", stages_dir=tmp_path / "stages")
    train(configure(None, METHODS[method]), tmp_path / "own")
    assert_same_weights(tmp_path / "served", tmp_path / "own")
    assert results["return_centering"] == "logsumexp"
    assert "centering:logsumexp" in results["scores"]["return"]["signature"]


@pytest.mark.slow
@pytest.mark.skipif(VLLM not in os.environ, reason=f"{VLLM} names no Python that has vLLM")
@pytest.mark.parametrize("method", ["llmr", "brim", "anchored", "seqkd"])
def test_a_real_vllm(configure, real_vllm, tmp_path, method):
    key = "teacher.key_env=TEACHER_KEY"
    config = configure(real_vllm, METHODS[method], key, kind="wide")
    train(config, tmp_path / "served", reporter=(listener := Listener()))
    train(configure(None, METHODS[method], kind="wide"), tmp_path / "own")
    assert_same_weights(tmp_path / "served", tmp_path / "own")
    assert "tiny behind" in "".join(listener.lines)


@pytest.fixture(scope="module")
def real_vllm(teachers, tmp_path_factory):
    """The URL of vLLM's own server; its kernels want heads of 32 dimensions."""
    tokenizer, _ = load_tokenizer(teachers["llama"])
    shape = {"family": "llama", "d_model": 64, "d_ff": 64, "layers": 2, "heads": 2}
    teacher = build_model(shape, tokenizer, seed=1)
    for parameter in teacher.model.parameters():
        parameter.data *= 1.5
    teacher.save(folder := tmp_path_factory.mktemp("wide"))
    teachers["wide"] = folder
    port = 18474
    options = f"--host 127.0.0.1 --port {port} --max-model-len 64 --enforce-eager --dtype float32"
    command = [
        *(os.environ[VLLM], "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *(*options.split(), "--served-model-name", "tiny", "--api-key", "secret-of-mine"),
    ]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | settings
    os.environ["TEACHER_KEY"] = "secret-of-mine"
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            for _ in range(600):
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None, "it did not start"
                time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.environ.pop("TEACHER_KEY")
            os.killpg(process.pid, signal.SIGTERM)


def test_an_encoder_decoder_behind_brim_serve(configure, teachers, tmp_path):
    server = StandIn(load_model(teachers["t5"]), "brim")
    objective = "{name: llmr, q_centering: mean}"
    with serving(server):
        results = train(configure(server.url, objective, kind="t5"), tmp_path / "served")
    train(configure(None, objective, kind="t5"), tmp_path / "own")
    assert_same_weights(tmp_path / "served", tmp_path / "own")
    assert "return_centering" not in results
    own = json.loads((tmp_path / "own" / "results.json").read_text())["test"]["scores"]["return"]
    assert results["scores"]["return"]["value"] == pytest.approx(own["value"], abs=1e-2)
    assert results["scores"]["return"]["signature"] == own["signature"]


def test_a_stopped_run_resumes_at_another_port_whatever_went_wrong(
    configure, standin, teachers, tmp_path, monkeypatch
):
    monkeypatch.setenv("TEACHER_KEY", "secret-of-mine")
    standin.key = "secret-of-mine"
    key = "teacher.key_env=TEACHER_KEY"
    seldom = (key, "trainer.save_every=3")
    train(configure(standin.url, LLMR, *seldom), tmp_path / "whole")

    with stopping(1), pytest.raises(Interrupted):
        train(configure(standin.url, LLMR, *seldom), tmp_path / "run")
    standin.faults = ["429", "500"]
    asked = len(standin.requests)
    original = standin.completions

    def until_killed(body):
        if len(standin.requests) > asked + 4:
            standin.url = ""  # no connection is answered from here on
            raise ConnectionResetError
        return original(body)

    standin.completions = until_killed
    with pytest.raises(AwayError, match="same command resumes"):
        train(configure(standin.url, LLMR, *seldom), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    done = max(json.loads(line)["step"] for line in lines)
    assert 0 < done < 3
    assert (tmp_path / "run" / "checkpoints" / f"step-{done}").exists(), "what was done is saved"

    listener = Listener()
    with serving(StandIn(load_model(teachers["llama"]), key="secret-of-mine")) as url:
        moved = ("teacher.requests.tokens=4000", "teacher.requests.concurrency=1")
        train(configure(url, LLMR, *seldom, *moved), tmp_path / "run", reporter=listener)
        assert set(evaluate_stages(tmp_path / "run")) == {"teacher"}  # asks where it is now
    assert_same_weights(tmp_path / "run", tmp_path / "whole", exact=True)
    said = "\n".join(listener.lines)
    assert "behind" in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"secret-of-mine" in path.read_bytes() for path in files)
    assert "secret-of-mine" not in said


def test_another_model_behind_the_name(configure, standin, tmp_path):
    seqkd = configure(standin.url, "{name: seqkd}")
    with stopping(1), pytest.raises(Interrupted):
        train(seqkd, tmp_path / "run", stages_dir=tmp_path / "stages")
    facts = json.loads((tmp_path / "run" / "manifest.json").read_text())["models"]["teacher"]
    assert facts["name"] == "tiny"
    assert facts["version"] == "0.32.0"
    for parameter in standin.model.model.parameters():
        parameter.data *= 1.2
    with pytest.raises(RunError, match="is not the one of before"):
        train(seqkd, tmp_path / "run", stages_dir=tmp_path / "stages")
    with pytest.raises(RunError, match=r"stages/server-\w+\.json: the model"):
        train(seqkd, tmp_path / "new", stages_dir=tmp_path / "stages")
    train(seqkd, tmp_path / "elsewhere")


def test_a_stop_before_the_run_begins_leaves_nothing_in_its_way(
    configure, standin, tmp_path, monkeypatch
):
    def stop(*_):
        raise KeyboardInterrupt

    (tmp_path / "run").mkdir()  # else it is removed again, but for a kill
    with monkeypatch.context() as patch:
        patch.setattr("brim.runs.train.begin_run", stop)
        with pytest.raises(KeyboardInterrupt):
            train(configure(standin.url), tmp_path / "run")
    assert list((tmp_path / "run/stages").glob("server-*.json"))
    assert train(configure(standin.url), tmp_path / "run")["steps"] == 3


def test_evaluations_and_reports(configure, standin, tmp_path):
    train(configure(standin.url), tmp_path / "run", stages_dir=tmp_path / "stages")
    tested = evaluate_stages(tmp_path / "run")
    assert set(tested) == {"teacher"}
    found = json.loads((tested["teacher"] / "results.json").read_text())["test"]
    assert "num_parameters" not in found
    again = evaluate_run(tmp_path / "run", split="validation")
    again_on_test = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert again["return_centering"] == "logsumexp"
    sampled = evaluate_run(
        tmp_path / "run",
        out=tmp_path / "sampled",
        overrides=["evaluation.expected_returns=true"],
    )
    assert "centering" in sampled["scores"]["expected_return"]["signature"]
    with serving(StandIn(standin.model)) as url:  # a server that has moved is no other setting
        moved = evaluate_run(tmp_path / "run", overrides=[f"teacher.server={url}"])
    with pytest.raises(ConfigError, match="--out"):
        evaluate_run(tmp_path / "run", overrides=["teacher.model=other"])
    assert moved["scores"]["return"] == again_on_test["scores"]["return"]
    write_reports([tmp_path], tmp_path / "report", max_outputs=1)


@pytest.mark.parametrize(
    ("objective", "overrides", "what"),
    [
        ("{name: rkl}", (), r"objective.name=rkl: needs all of the teacher's logits.*choose llmr"),
        ("{name: anchored}", (), "immediate=sampled; for anchored also .*expected_regrets=false"),
        ("{name: llmr, q_centering: policy}", (), "choose objective.q_centering=logsumexp"),
        (LLMR, ("student.build=null", "student.keep_layers=1"), "gives no layers"),
        (LLMR, ("teacher.tokenizer=null",), "teacher.tokenizer.path"),
        (LLMR, ("teacher.dtype=bfloat16",), "dtype is for a model in this process"),
        (LLMR, ("teacher.model=null",), "server and model go together"),
        (LLMR, ("teacher.server=http://me:pass@host",), "user name, a password or a query"),
        (LLMR, ("teacher.server=host",), "is no URL"),
        (LLMR, ("evaluation.decoding.strategy=beam",), "does not search with beams"),
        (LLMR, ("teacher.tokenizer.kind=word",), "kind and vocab_size are for one to train"),
    ],
)
def test_settings_that_are_refused(configure, objective, overrides, what):
    with pytest.raises(ConfigError, match=what):
        configure("http://127.0.0.1:9", objective, *overrides)


def test_what_is_for_a_server_is_refused_beside_a_path(configure):
    with pytest.raises(ConfigError, match="api is for a model behind a server"):
        configure(None, LLMR, "teacher.api=vllm")


def test_a_centering_that_the_server_does_not_give(configure, standin, tmp_path):
    with pytest.raises(ConfigError, match="q_centering: the server .vllm. does not give mean"):
        train(configure(standin.url, "{name: brim}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_small_a_context(configure, standin, tmp_path):
    standin.max_model_len = 12
    with pytest.raises(DataError, match="--max-model-len"):
        train(configure(standin.url), tmp_path / "run")


def test_a_plan(configure):
    text = as_text(plan(configure("http://127.0.0.1:9", "{name: seqkd}")))
    assert "the teacher, tiny, is behind a server" in text
