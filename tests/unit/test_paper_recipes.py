"""The paper's settings, Tables 4 to 8, as the recipes have them; and named variants of recipes."""

from pathlib import Path

import pytest
import torch
from makers import configure

from brim.config.loading import load_config
from brim.errors import ConfigError
from brim.objectives import OBJECTIVES
from brim.plan.warnings import settings_warnings
from brim.recipes import find_recipe, list_recipes, run_directory
from brim.training.loop_settings import OptimConfig, SupervisedConfig, TrainerConfig
from brim.training.optimizer import count_steps, learning_rate
from brim.training.settings import RunConfig

TASKS = ("xsum", "europarl", "gsm8k")
DIVERGENCES = ("seqkd", "kl", "rkl", "js", "tvd")
REINFORCEMENT = ("anchored", "llmr", "llmr_mean", "llmr_min_var", "brim", "ppo_llmr", "ppo_brim")
QWEN = ("kl", "tvd", "llmr", "brim", "anchored")

COUNTS = {  # Table 4
    "xsum": (202_926, 11_332, 11_333),
    "europarl": (1_167_808, 10_014, 10_016),
    "gsm8k": (6_705, 768, 1_319),
}
LENGTHS = {"xsum": (1024, 64), "europarl": (80, 80), "gsm8k": (200, 300)}  # Tables 5 and 6
PROMPTS = {  # not in the paper
    "xsum": "summarize: {document}",
    "europarl": "translate English to Dutch: {en}",
    "gsm8k": "{question}",
}
PROMPTS_QWEN = {  # the cue for the answer is the last thing that a decoder-only model reads
    "xsum": "{document}\n\nThe article above in one sentence:\n",
    "europarl": "Translate English to Dutch.\n\nEnglish: {en}\nDutch:",
    "gsm8k": "Question: {question}\nAnswer:",
}
# Of stages of which the paper says nothing: a tenth of their steps.
WARMUPS = {"xsum": 80, "europarl": 456, "gsm8k": 3}
K = {"xsum": 2, "europarl": 2, "gsm8k": 8}  # Table 8
K_QWEN = {"xsum": 2, "europarl": 2, "gsm8k": 16}
METRICS = {
    "xsum": ("rouge1", "rouge2", "rougeL"),
    "europarl": ("bleu", "chrf", "ter"),
    "gsm8k": ("gsm8k_accuracy", "answer_accuracy"),
}

T5 = [f"{task}/{method}" for task in TASKS for method in (*DIVERGENCES, *REINFORCEMENT)]
PAIRS = T5 + [f"{task}/qwen/{method}" for task in TASKS for method in QWEN]
ALONE = [*(f"{task}/predistill" for task in TASKS), "europarl/teacher", "gsm8k/teacher"]


def method_of(name: str) -> str:
    return name.rpartition("/")[2]


def test_names():
    names = {name for name, _ in list_recipes() if name.partition("/")[0] in TASKS}
    assert names == {*PAIRS, *ALONE}


def test_each_method_of_table_1_and_7_is_its_own():
    for name in PAIRS:
        objective, method = configure(name).objective, method_of(name)
        assert objective.name == (method if method in OBJECTIVES else "llmr")
        assert objective.name in OBJECTIVES


@pytest.mark.parametrize("name", PAIRS + ALONE)
def test_table_4(name):
    task = configure(name).task
    limits = (task.max_train_examples, task.max_validation_examples, task.max_test_examples)
    assert limits == COUNTS[name.partition("/")[0]]
    assert task.metrics == METRICS[name.partition("/")[0]]


@pytest.mark.parametrize("name", PAIRS + ALONE)
def test_task_is_the_published_data_set(name):
    task_name, _, rest = name.partition("/")
    task = configure(name).task
    prompts = PROMPTS_QWEN if rest.startswith("qwen/") else PROMPTS
    assert (task.name, task.prompt) == (task_name, prompts[task_name])
    defaults = type(task)().model_dump(exclude={"prompt"})
    limits = {f"max_{split}_examples" for split in ("train", "validation", "test")}
    if task_name == "gsm8k":  # T5's vocabulary has no `<`
        defaults["calculator_marks"] = rest.startswith("qwen/")
    differs = {key for key, value in defaults.items() if getattr(task, key) != value}
    assert differs == limits
    assert configure(name, "task.path=data").task.path == "data"


def longest_row(config: RunConfig) -> int:
    """Tokens of a prompt and a completion of full length."""
    return config.decoding.max_prompt_tokens + config.decoding.max_tokens


def check_table_6(
    optim: OptimConfig, loop: TrainerConfig, row: int, *, warmup_steps: int = 5000
) -> None:
    assert (loop.num_epochs, loop.max_steps) == (2, None)
    assert loop.micro_batch_tokens == 32 * row
    assert loop.rollout_batch_size == 32 * 16
    assert loop.dropout == 0.25
    assert optim.lr == 0.00005
    assert_common(optim, warmup_steps)


def assert_common(optim: OptimConfig, warmup_steps: int = 5000) -> None:
    assert optim.betas == (0.9, 0.999)
    assert optim.warmup_steps == warmup_steps
    assert optim.schedule == "constant"


@pytest.mark.parametrize("name", [n for n in PAIRS if method_of(n) in REINFORCEMENT])
def test_table_5(name):
    config = configure(name)
    loop, optim = config.trainer, config.optim
    assert (loop.num_epochs, loop.max_steps) == (3, None)
    assert loop.micro_batch_tokens == 8 * longest_row(config)
    assert loop.rollout_batch_size == 8 * 32
    assert loop.dropout == 0.0
    assert optim.lr == 0.00001
    assert_common(optim)
    assert config.objective.clip.range == 100


@pytest.mark.parametrize("name", [n for n in PAIRS + ALONE if method_of(n) not in REINFORCEMENT])
def test_table_6(name):
    config = configure(name)
    warmup_steps = WARMUPS[name.partition("/")[0]] if name in ALONE else 5000
    check_table_6(config.optim, config.trainer, longest_row(config), warmup_steps=warmup_steps)


@pytest.mark.parametrize("name", PAIRS + ALONE)
def test_limits_and_evaluation(name):
    config = configure(name)
    decoding = config.decoding
    assert (decoding.max_prompt_tokens, decoding.max_tokens) == LENGTHS[name.partition("/")[0]]
    assert config.evaluation.metric is None  # the task's first


@pytest.mark.parametrize("name", PAIRS)
def test_students_are_pre_distilled_alike(name):
    config = configure(name)
    predistill = config.student.predistill
    check_table_6(
        predistill.optim,
        predistill.trainer,
        longest_row(config),
        warmup_steps=WARMUPS[name.partition("/")[0]],
    )
    assert predistill == configure(f"{name.partition('/')[0]}/brim").student.predistill


@pytest.mark.parametrize("name", PAIRS)
def test_teachers(name):
    config = configure(name)
    task, *pair, _ = name.split("/")
    if pair:
        assert (config.teacher.path, config.student.path) == (
            "Qwen/Qwen1.5-4B",
            "Qwen/Qwen1.5-0.5B",
        )
    else:
        assert (config.teacher.path, config.student.path) == (
            "google/flan-t5-xl",
            "google-t5/t5-base",
        )
    if task == "xsum" and not pair:  # prompted
        assert config.teacher.train is None
    else:
        check_table_6(
            config.teacher.train.optim,
            config.teacher.train.trainer,
            longest_row(config),
            warmup_steps=WARMUPS[task],
        )


@pytest.mark.parametrize("name", PAIRS + ALONE)
def test_stages_without_settings_in_the_paper_train(name):
    """Nine tenths of the steps have the full learning rate, whatever the paper's own stages do."""
    config = configure(name)
    stages = [config.student.predistill, config.teacher.train, config if name in ALONE else None]
    for stage in filter(None, stages):
        num_steps = count_steps(stage.trainer, COUNTS[name.partition("/")[0]][0])
        rates = [learning_rate(stage.optim, step, num_steps) for step in range(num_steps)]
        assert rates.count(stage.optim.lr) >= 0.9 * num_steps
    warned = [
        text.partition(":")[0]
        for text in settings_warnings(config, COUNTS[name.partition("/")[0]][0])
    ]
    assert set(warned) <= ({config.objective.name} if name in PAIRS else set())


@pytest.mark.parametrize("task", TASKS)
def test_k(task):
    assert (
        configure(f"{task}/brim").objective.k
        == configure(f"{task}/ppo_brim").objective.k
        == K[task]
    )
    assert configure(f"{task}/qwen/brim").objective.k == K_QWEN[task]


@pytest.mark.parametrize("task", TASKS)
def test_baselines(task):
    baselines = {
        method: configure(f"{task}/{method}").objective.baseline
        for method in ("llmr", "llmr_mean", "llmr_min_var", "brim")
    }
    assert baselines == {
        "llmr": "none",
        "llmr_mean": "mean",
        "llmr_min_var": "min_variance",
        "brim": "none",
    }


@pytest.mark.parametrize("task", TASKS)
def test_methods_differ_in_the_objective_only(task):
    for methods in (DIVERGENCES, REINFORCEMENT):
        configs = [configure(f"{task}/{method}") for method in methods]
        rest = [config.model_dump(exclude={"objective", "description"}) for config in configs]
        assert all(other == rest[0] for other in rest)


@pytest.mark.parametrize("task", ["europarl", "gsm8k"])
def test_teacher_alone_is_trained_as_in_the_other_recipes(task):
    alone, other = configure(f"{task}/teacher"), configure(f"{task}/brim").teacher
    assert alone.student.path == other.path
    assert alone.objective.targets == "data"
    trained = SupervisedConfig.model_validate(other.train)
    assert alone.optim.model_dump() == trained.optim.model_dump()
    loop = alone.trainer.model_dump(exclude={"precision", "compile", "monitors", "callbacks"})
    assert loop == trained.trainer.model_dump()


@pytest.mark.parametrize("task", TASKS)
def test_predistill_alone_is_trained_as_in_the_other_recipes(task):
    alone, other = configure(f"{task}/predistill"), configure(f"{task}/brim").student
    assert alone.student.path == other.path
    assert (alone.student.predistill, alone.objective.targets) == (None, "teacher")
    assert alone.optim.model_dump() == other.predistill.optim.model_dump()
    loop = alone.trainer.model_dump(exclude={"precision", "compile", "monitors", "callbacks"})
    assert loop == other.predistill.trainer.model_dump()


@pytest.mark.parametrize("size", ["small", "base", "large"])
@pytest.mark.parametrize("name", T5)
def test_students_of_figure_2(name, size):
    config = configure(name, f"size={size}")
    assert config.student == configure(name).student.model_copy(
        update={"path": f"google/flan-t5-{size}"}
    )
    assert config.model_copy(update={"student": configure(name).student}) == configure(name)


@pytest.mark.parametrize("name", PAIRS)
def test_warm_up_counted_in_micro_batches(name):
    """5,000 batches of 8 (32 an update, Table 5) or of 32 (16 an update, Table 6)."""
    other, printed = configure(name, "warmup=micro_batches"), configure(name)
    accumulation = 32 if method_of(name) in REINFORCEMENT else 16
    assert abs(other.optim.warmup_steps - 5000 / accumulation) <= 0.5
    restored = other.optim.model_copy(update={"warmup_steps": 5000})
    assert other.model_copy(update={"optim": restored}) == printed


@pytest.mark.parametrize("name", PAIRS)
def test_default_parameters_of_pytorchs_adamw(name):
    default = torch.optim.AdamW([torch.zeros(1)]).defaults
    config = configure(name, "adamw=pytorch")
    assert config.optim.weight_decay == default["weight_decay"] == 0.01
    assert (config.optim.betas, config.optim.eps) == (default["betas"], default["eps"])
    restored = config.optim.model_copy(update={"weight_decay": 0.0})
    assert config.model_copy(update={"optim": restored}) == configure(name)


def test_run_directories_are_apart():
    directories = {run_directory(find_recipe(name)) for name, _ in list_recipes()}
    assert len(directories) == len(list_recipes())
    assert str(run_directory(find_recipe("xsum/qwen/brim"))) == "runs/xsum/qwen/brim"


@pytest.mark.parametrize(
    ("recipe", "folder"),
    [
        *(("mine.yaml", "mine"), ("./mine.yaml", "mine"), ("a/b/mine.yaml", "b/mine")),
        *(("../mine.yaml", "one/mine"), ("../../mine.yaml", "top/mine"), ("/mine.yaml", "mine")),
        *(("a/../mine.yaml", "two/mine"), ("..mine/b.yaml", "..mine/b")),
    ],
)
def test_ones_own_recipe_runs_below_runs(recipe, folder, tmp_path, monkeypatch):
    (tmp_path / "top/one/two").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "top/one/two")
    assert run_directory(Path(recipe)) == Path("runs", folder)


# -- variants --------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "mine.yaml"):
        path = tmp_path / name
        path.write_text(f"extends: cmudict/brim\n{text}", encoding="utf-8")
        return path

    return write


def read(path, *overrides: str) -> RunConfig:
    return load_config(RunConfig, path, overrides, search=find_recipe)


SIZES = """
optim: {lr: 1.0}
variants:
  size:
    small: {optim: {lr: 2.0}, trainer: {max_steps: 7}}
    large: {optim: {lr: 3.0}, objective: {name: llmr}}
  speed:
    fast: {trainer: {max_steps: 5}}
"""


def test_variant_is_above_the_file_and_below_the_overrides(write):
    path = write(SIZES)
    assert read(path).optim.lr == 1.0
    assert read(path, "size=small").optim.lr == 2.0
    for overrides in (("size=small", "optim.lr=4.0"), ("optim.lr=4.0", "size=small")):
        config = read(path, *overrides)
        assert (config.optim.lr, config.trainer.max_steps) == (4.0, 7)
    assert read(path, "size=large").objective.name == "llmr"
    config = read(path, "speed=fast", "size=large")
    assert (config.optim.lr, config.trainer.max_steps) == (3.0, 5)


def test_variants_of_an_extended_file(write, tmp_path):
    write(SIZES)
    path = tmp_path / "other.yaml"
    path.write_text("extends: mine.yaml\nvariants: {size: {small: {optim: {lr: 9.0}}}}")
    config = read(path, "size=small")
    assert (config.optim.lr, config.trainer.max_steps) == (9.0, 7)
    path.write_text("extends: mine.yaml\nvariants: {size: null}")
    assert read(path, "speed=fast").trainer.max_steps == 5
    for none in ("{size: null}", "null"):
        path.write_text(f"extends: mine.yaml\nvariants: {none}")
        with pytest.raises(ConfigError, match="size=small: unknown key"):
            read(path, "size=small")


@pytest.mark.parametrize("value", ["smal", "9", "true", "{small: 1}"])
def test_unknown_variant_names_those_that_are_known(write, value):
    with pytest.raises(ConfigError, match=r"^command line: size=.*: size is one of small, large"):
        read(write(SIZES), f"size={value}")
    with pytest.raises(ConfigError, match="did you mean small"):
        read(write(SIZES), "size=smal")


def test_mistake_in_a_variant_has_its_line(write):
    path = write("variants:\n  size:\n    small: {optim: {learning_rate: 2.0}}\n")
    assert read(path).optim
    with pytest.raises(ConfigError, match=r"mine.yaml:4: optim.learning_rate: unknown key"):
        read(path, "size=small")


@pytest.mark.parametrize(
    "text",
    ["variants: 3", "variants: [small]", "variants: {size: small}", "variants: {size: {small: 3}}"],
)
def test_variants_of_another_form(write, text):
    with pytest.raises(ConfigError, match=r"mine.yaml:2: variants: write"):
        read(write(text))


def test_variant_cannot_be_called_as_a_setting_is(write):
    with pytest.raises(ConfigError, match="variants: optim is a setting"):
        read(write("variants: {optim: {small: {seed: 1}}}"))
