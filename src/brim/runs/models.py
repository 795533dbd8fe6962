"""A run's models as they are before any training: loaded, built or connected, and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from brim.config.loading import config_hash
from brim.errors import ConfigError, ModelError, RunError
from brim.examples import Example
from brim.metrics import get_metric
from brim.models import (
    AveragedTeacher,
    LanguageModel,
    Quantization,
    Teacher,
    TeacherOfEach,
    add_adapters,
    build_model,
    check_vllm,
    keep_layers,
    load_model,
    quantization_of,
    share_vocabulary,
    train_tokenizer,
    whole,
)
from brim.models.loading import DTYPES, load_tokenizer, place_of
from brim.models.modes import usable_device, without_weights
from brim.models.server_settings import ServedModel
from brim.models.settings import ModelSettings, TokenizerSettings
from brim.runs.directory import RunDirectory
from brim.runs.inputs import Made, RunInputs
from brim.runs.pairs import match
from brim.runs.served import load_served, recognize
from brim.seeding import derive_seed
from brim.training.optimizer import (
    check_checkpointing,
    check_trainable,
    import_adamw_8bit,
    schedule_warnings,
)
from brim.training.settings import RunConfig
from brim.training.teacher_settings import NamedTeacher, TeacherConfig
from brim.training.tracking import check_backends


def load_checked(
    run: RunInputs,
) -> tuple[Made[Teacher], Made[LanguageModel] | None, dict[str, Any]]:
    """Load teacher and student, and check everything that can be checked before training starts.

    Returns:
        The teacher before any training, the student (see `load_student`), what `check_rows` found.

    Raises:
        BrimError: settings, data and models do not go together, or are not what the run began with.
    """
    config = run.config
    check_device(config)
    check_backends(config.tracking.backends if run.accelerator.is_main_process else ())
    _check_data(run)
    teacher = load_teacher(run)
    bits = bits_of(teacher.model)
    student = load_student(run, teacher.model)
    if student is not None:
        config.check_quantized(bits, quantization_of(student.model))
        match(config, teacher.model, student.model)
        model = student.model
    else:  # of the teacher before its training: whether there are so many
        config.check_quantized(bits, None)
        model = cut_student(run, teacher.model)
    if config.student.lora is None:
        check_trainable(model, "student")
    if config.teacher.train is not None:
        check_trainable(whole(teacher.model), "teacher")
    spelling = run.check_rows(run.task.splits(), model, teacher.model)
    data = run.data()
    if RunDirectory(run.out).manifest().get("data", data) != data:
        raise RunError(
            f"{run.out}: the data is not what this run was begun with (see manifest.json); "
            "bring it back, or choose another --out"
        )
    check_known(run, "teacher", teacher)
    if student is not None:
        check_known(run, "student", student)
    if config.student.lora is not None:
        add_adapters(without_weights(model.model), config.student.lora, seed=0)
    if config.decoding.engine == "vllm":
        check_vllm(model)
    check_checkpointing(config, getattr(teacher.model, "model", None), model.model)
    for _, keys, _, optim in config.stages():
        if optim.optimizer == "adamw_8bit":
            import_adamw_8bit(run.accelerator.device, keys)
    for warning in schedule_warnings(config, len(run.examples("train"))):
        run.reporter.say(f"warning: {warning}")
    return teacher, student, spelling


def check_device(config: RunConfig) -> None:
    """Check that this machine has the teacher's device, which may be needed hours later.

    Raises:
        ConfigError: it has not.
    """
    try:
        usable_device(config.teacher.device or "cpu")
    except ModelError as error:
        raise ConfigError(f"teacher.{error}") from None


def _check_data(run: RunInputs) -> None:
    config, supervised, train = run.config, run.supervised_metric(), run.examples("train")
    if run.metric() in run.task.metrics and supervised == "return":
        raise ConfigError(
            f"evaluation.metric: {run.metric()} needs targets in the validation split; "
            "give a target column, or choose return or expected_return"
        )
    if supervised == "return" and not config.evaluation.returns:
        raise ConfigError(
            "evaluation.returns: must be true where a return picks the checkpoint, as it does "
            "where the validation split has no targets"
        )
    if config.teacher.train:
        for name, examples in (("training", train), ("validation", run.used("validation"))):
            if not all(example.references for example in examples):
                raise ConfigError(f"teacher.train: needs a target for each {name} example")
    answered = all(example.references for example in train)
    if config.objective.needed_targets == "data" and not answered:
        raise ConfigError("objective.targets: data needs a target for each training example")
    for name in run.task.metrics:
        get_metric(name)
    config.check_processes(run.accelerator.num_processes)
    for split in run.task.splits()[2:]:
        run.examples(split)  # whatever is wrong with it is known before models are loaded


def load_teacher(run: RunInputs) -> Made[Teacher]:
    """Load, build or connect the teacher as it is before any training of it."""
    settings = run.config.teacher
    known = RunDirectory(run.out).manifest().get("models", {}).get("teacher")
    known = None if run.other_teacher else known
    if settings.several is not None:
        return _load_several(run, settings.several, known)
    if settings.server is not None:
        return _connect(run, settings, known)
    if settings.build is None:
        model = load_role(run, settings, settings.quantization)
    else:
        assert settings.tokenizer is not None
        tokenizer = _tokenizer(run, "teacher", settings.tokenizer)
        model = _build(run, "teacher", settings.build, tokenizer)
    # One that is not trained stays where `teacher.device` had it loaded.
    return Made.loaded(model if settings.train is None else run.place(model))


def _connect(
    run: RunInputs, settings: ServedModel, known: Mapping[str, Any] | None
) -> Made[Teacher]:
    served = load_served(settings, run.config, run.examples("train"))
    fingerprint, facts = recognize(served, known, run.out, run.stages_dir)
    run.reporter.say(
        f"teacher: {facts['name']} behind {settings.server} ({facts['api']}); two equal "
        f"requests differ by {facts['noise']:.2g} in the mean log-probability"
    )
    return Made(served, fingerprint, facts=facts)


def _load_several(
    run: RunInputs, several: Sequence[NamedTeacher], known: Mapping[str, Any] | None
) -> Made[Teacher]:
    """Load teachers of one vocabulary: a mean of them, or the one of each example."""
    made: dict[str, Made[Teacher]] = {}
    for number, settings in enumerate(several):
        name = settings.name or str(number)
        if settings.server is None:
            made[name] = Made.loaded(load_role(run, settings))
        else:
            before = known and known.get("teachers", {}).get(name)
            made[name] = _connect(run, settings, before)
    models = {name: one.model for name, one in made.items()}
    first, *others = models.values()
    for _ in range(2):  # what the last one excludes, all of them do
        for other in others:
            share_vocabulary(first, other)
    facts: dict[str, Any] = {"teachers": {name: one.facts for name, one in made.items()}}
    weights = [settings.weight for settings in several]
    identity = {name: one.fingerprint for name, one in made.items()}
    if getattr(run.task, "teacher_column", None) is not None:
        by_name = TeacherOfEach(models)
        for split in run.task.splits():
            by_name.check_examples(run.examples(split))
        return Made(by_name, config_hash(identity), facts=facts)
    mean = AveragedTeacher([whole(model) for model in models.values()], weights)
    return Made(mean, config_hash({**identity, "weights": mean.weights}), facts=facts)


def load_student(run: RunInputs, teacher: Teacher) -> Made[LanguageModel] | None:
    """Load or build the student; None where it is to be made of the teacher's layers."""
    settings = run.config.student
    if settings.keep_layers is not None:
        return None
    if settings.path is not None:
        model = load_role(run, settings)
    else:
        assert settings.build is not None
        own = settings.tokenizer
        tokenizer = teacher.tokenizer if own is None else _tokenizer(run, "student", own)
        model = _build(run, "student", settings.build, tokenizer)
    return Made.loaded(run.place(model))


def cut_student(run: RunInputs, teacher: Teacher) -> LanguageModel:
    """Make the student of a teacher's layers, in its own type."""
    settings = run.config.student
    assert settings.keep_layers is not None
    student, dtype = (
        keep_layers(whole(teacher), layers=settings.keep_layers),
        DTYPES[settings.dtype],
    )
    return student.to(dtype) if isinstance(dtype, torch.dtype) else student


def check_known(run: RunInputs, role: str, made: Made[Teacher]) -> None:
    """Check that a loaded model is the one that the run was begun with; see also `recognize`.

    Raises:
        RunError: it is not.
    """
    known = RunDirectory(run.out).manifest().get("models", {}).get(role, made.facts)
    # A server's was compared with a tolerance.
    if (
        "probe" not in made.facts
        and known != made.facts
        and not (role == "teacher" and run.other_teacher)
    ):
        raise RunError(
            f"{run.out}: the {role} is not the one that this run was begun with (see "
            "manifest.json): its weights, configuration or tokenizer have changed; bring it back, "
            "or choose another --out"
        )


def bits_of(teacher: Teacher) -> Quantization | None:
    """Return how a teacher's weights are quantized; None of one behind a server."""
    return quantization_of(teacher) if isinstance(teacher, LanguageModel) else None


def load_role(
    run: RunInputs, settings: ModelSettings, bits: Quantization | None = None
) -> LanguageModel:
    """Load the model that a role's settings name, as they say; quantized by `bits`."""
    assert settings.path is not None
    device: Any = run.accelerator.device
    if isinstance(settings, TeacherConfig):  # one in parts may be too large for a device
        in_parts = settings.sharding != "none" and settings.train is None
        device = "cpu" if in_parts else settings.device or device
    role = "teacher" if isinstance(settings, TeacherConfig | NamedTeacher) else "student"
    with run.reporter.loading(f"{role} from {place_of(settings.path, settings.revision)}") as facts:
        model = load_model(
            settings.path,
            revision=settings.revision,
            dtype=settings.dtype,
            device=device,
            trust_remote_code=settings.trust_remote_code,
            quantization=bits,
        )
        facts += _facts(model)
    return model


def _facts(model: LanguageModel) -> list[str]:
    """What is said of a model that was loaded."""
    kind, dtype = type(model.model).__name__, str(model.model.dtype).removeprefix("torch.")
    bits = quantization_of(model)
    weights = dtype if bits is None else f"{bits} ({dtype})"
    return [kind, f"{model.num_parameters:,} parameters", f"{weights} on {model.device}"]


def _build(
    run: RunInputs, role: str, description: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> LanguageModel:
    with run.reporter.loading(f"{role} of random weights") as facts:
        seed = derive_seed(run.seed_of(role), "build", role)
        model = build_model(description, tokenizer, seed=seed)
        facts += _facts(model)
    return model


def _tokenizer(run: RunInputs, role: str, settings: TokenizerSettings) -> PreTrainedTokenizerBase:
    if settings.path is not None:
        with run.reporter.loading(f"{role}'s tokenizer from {place_of(settings.path)}") as facts:
            tokenizer = load_tokenizer(settings.path)[0]
            facts.append(f"{len(tokenizer):,} tokens")
        return tokenizer
    texts = _texts(run.examples("train"))
    with run.reporter.loading(f"{role}'s tokenizer of the training data") as facts:
        tokenizer = train_tokenizer(texts, kind=settings.kind, vocab_size=settings.vocab_size)
        facts.append(f"{len(tokenizer):,} tokens")
    return tokenizer


def _texts(examples: Sequence[Example]) -> Iterator[str]:
    """The text that a tokenizer is trained on: prompts and targets."""
    for example in examples:
        yield example.prompt
        yield from example.references
        yield from (message["content"] for message in example.messages)
