"""Where the shapes of a run's models come from.

A folder's config.json, the description of a model from scratch, or, for hub names, the files in
`brim/data/model_configs` and what was downloaded before.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from brim.errors import ModelError, first_line
from brim.models import add_adapters
from brim.models.head_checks import check_decoder
from brim.models.layers import cut_model
from brim.models.loading import DTYPES
from brim.models.quantization import stored_quantization
from brim.models.scratch import build_without_tokenizer
from brim.plan.models import ModelShape
from brim.training.settings import RunConfig, StudentConfig, TeacherConfig

CONFIGS = Path(__file__).parents[1] / "data" / "model_configs"


def teacher_shape(config: RunConfig) -> ModelShape:
    """The teacher of a run.

    Raises:
        ModelError: its shapes are not known without downloading it.
    """
    settings = config.teacher
    if settings.build is None:
        shape = _load(settings)
    else:
        assert settings.tokenizer is not None
        shape = _build(settings.build, settings.tokenizer.vocab_size)
    if settings.quantization is None:
        return shape
    if shape.quantization is not None:
        raise ModelError(
            f"teacher.quantization: the weights of {settings.path} are stored in "
            f"{shape.quantization} already; set it to null"
        )
    return replace(shape, quantization=settings.quantization)


def student_shape(config: RunConfig, teacher: ModelShape) -> ModelShape:
    """The student of a run; of one from scratch the vocabulary is at most the teacher's.

    Raises:
        ModelError: its shapes are not known without downloading it, or it keeps more layers than
            the teacher has.
    """
    settings = config.student
    if settings.keep_layers is not None:
        shape = _keep(teacher, settings.keep_layers, DTYPES[settings.dtype])
    elif settings.build is not None:
        shape = _build(settings.build, len(teacher.head))
    else:
        shape = _load(settings)
    if settings.lora is not None:
        shape = replace(shape, model=copy.deepcopy(shape.model))
        add_adapters(shape.model, settings.lora, seed=0)
    return shape


def known_models() -> list[str]:
    """Hub names whose shapes come with the package."""
    return sorted(path.stem.replace("--", "/") for path in CONFIGS.glob("*.json"))


def _load(settings: TeacherConfig | StudentConfig) -> ModelShape:
    assert settings.path is not None
    path = _find_config(settings)
    text, names = path.read_text(encoding="utf-8"), _stored_names(path.parent)
    model = _from_config(settings.path, text, settings.dtype, names)
    return ModelShape(settings.path, model, stored_quantization(model.config, settings.path))


@lru_cache(maxsize=8)
def _from_config(
    name: str, text: str, dtype_name: str, stored_names: frozenset[str]
) -> PreTrainedModel:
    """The model that a config.json describes, on the meta device."""
    raw = json.loads(text)
    try:
        config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
        own = str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
        name_of_dtype = own if dtype_name == "auto" else dtype_name
        dtype = DTYPES[name_of_dtype.removeprefix("torch.")]
        assert isinstance(dtype, torch.dtype)
        auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(config, dtype=dtype)
    except Exception as error:  # of the code of any kind of model
        raise ModelError(
            f"{name}: its config.json describes no language model that transformers knows "
            f"({first_line(error)})"
        ) from None
    config.name_or_path = name
    check_decoder(model)
    if _has_own_head(config, stored_names):
        head = model.get_output_embeddings()
        head.weight = nn.Parameter(torch.empty_like(head.weight))
    _keep_in_float32(model, dtype)
    return model


def _has_own_head(config: PreTrainedConfig, stored_names: frozenset[str]) -> bool:
    """Whether a T5 or mT5 has one, of which transformers' configs say that none has."""
    if config.model_type not in ("t5", "mt5"):
        return False
    if stored_names:
        return "lm_head.weight" in stored_names
    # The first T5 scales what the embedding reads; every mT5 has a head of its own.
    return not getattr(config, "scale_decoder_outputs", False)


def _stored_names(folder: Path) -> frozenset[str]:
    """Names of the weights in a folder, if it has any; they are not read."""
    names: set[str] = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names.update(tensors.keys())
    return frozenset(names)


def _find_config(settings: TeacherConfig | StudentConfig) -> Path:
    name = str(settings.path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: has no config.json, so its shapes are not known")
        return folder / "config.json"
    shipped = CONFIGS / f"{name.replace('/', '--')}.json"
    if shipped.is_file():
        return shipped
    cached = None
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        cached = try_to_load_from_cache(name, "config.json", revision=settings.revision)
    if isinstance(cached, str):
        return Path(cached)
    near = difflib.get_close_matches(name, known_models(), n=1)
    hint = f"did you mean {near[0]}? Otherwise put" if near else "put"
    raise ModelError(
        f"{name}: its shapes are not known without downloading it; {hint} its config.json into a "
        "folder and give that as the path"
    )


def _keep_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """The layers that transformers loads as float32 whatever is asked for."""
    kept = set(model._keep_in_fp32_modules_strict or ()) if dtype != torch.float32 else set()
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in kept:
            module.float()


def _build(description: Mapping[str, Any], vocab_size: int) -> ModelShape:
    model = _from_description(json.dumps(description), vocab_size)
    return ModelShape(f"{description['family']} from scratch", model)


@lru_cache(maxsize=8)
def _from_description(text: str, vocab_size: int) -> PreTrainedModel:
    """What `build_model` makes of a description, on the meta device."""
    with torch.device("meta"):
        return build_without_tokenizer(json.loads(text), vocab_size=vocab_size)


def _keep(teacher: ModelShape, number: int, dtype: torch.dtype | str) -> ModelShape:
    """So many of the teacher's layers."""
    model = cut_model(teacher.model, layers=number)
    if isinstance(dtype, torch.dtype):
        model.to(dtype)
    return ModelShape(f"{number} layers of the teacher", model)
