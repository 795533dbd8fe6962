"""Models without their weights: on the meta device, where tensors have shapes and no numbers.

Shapes are of a folder's config.json, of the description of a model from scratch, or, for hub names,
of the files in `brim/data/model_configs` and of what was downloaded before.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
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
from brim.models import Quantization, add_adapters
from brim.models.adapters import linear_layers
from brim.models.backbone import max_positions
from brim.models.head_checks import check_decoder
from brim.models.layers import cut_model, layers_of
from brim.models.loading import DTYPES, load_tokenizer
from brim.models.quantization import stored_quantization
from brim.models.scratch import build_without_tokenizer
from brim.models.settings import ModelSettings
from brim.training.settings import RunConfig

CONFIGS = Path(__file__).parents[1] / "data" / "model_configs"


@dataclass(frozen=True)
class Size:
    """Prompts with a completion each, all as long as they may be."""

    rows: int
    num_prompt_tokens: int
    num_tokens: int

    def at_most(self, rows: int) -> Size:
        """No more than so many of them."""
        return self if self.rows <= rows else replace(self, rows=rows)


@dataclass(frozen=True)
class ModelShape:
    """The shapes of one model, and how its weights are kept.

    Attributes:
        name: what the settings call it.
        model: on the meta device, its weights of the types that they are loaded in; if adapters
            are trained, it has them.
        quantization: how the weights of its linear layers are kept, if not as they are.
    """

    name: str
    model: PreTrainedModel
    quantization: Quantization | None = None

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts are read by an encoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def max_positions(self) -> int | None:
        """Longest sequence; None where positions are relative."""
        return max_positions(self.model.config)

    @property
    def head(self) -> torch.Tensor:
        """The weight (V, d) of the output head."""
        return _weight(self.model.get_output_embeddings())

    @cached_property
    def num_parameters(self) -> int:
        """Of the model, shared ones counted once, without adapters."""
        return sum(p.numel() for p in self._parameters(adapters=False))

    @cached_property
    def num_adapters(self) -> int:
        """Of the adapters."""
        return sum(p.numel() for p in self._parameters(adapters=True))

    @cached_property
    def num_trainable(self) -> int:
        """That training changes."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @cached_property
    def trainable_bytes(self) -> int:
        """Of the parameters that training changes; gradients take as much, moments twice."""
        return sum(p.nbytes for p in self.model.parameters() if p.requires_grad)

    @cached_property
    def moment_bytes_8bit(self) -> int:
        """Of both moments in 8 bits, with a float32 scale for each 256 values.

        Tensors of fewer than 4,096 values keep theirs in float32.
        """
        counts = [p.numel() for p in self.model.parameters() if p.requires_grad]
        moments: int = sum(n + 4 * -(-n // 256) if n >= 4096 else 4 * n for n in counts)
        return 2 * moments

    def layer_bytes(self, *, trainable: bool = False) -> int:
        """Of the weights of the largest layer, all of them or those that are trained."""
        return max(_bytes(layer.parameters(), trainable) for layer in self._layers)

    def outside_bytes(self, *, trainable: bool = False) -> int:
        """The same of what is in no layer: embeddings, output head, last norms."""
        inside = {id(p) for layer in self._layers for p in layer.parameters()}
        return _bytes((p for p in self.model.parameters() if id(p) not in inside), trainable)

    @cached_property
    def stored_bytes(self) -> int:
        """Of the weights in a file, adapters merged."""
        return sum(p.nbytes for p in self._parameters(adapters=False))

    @cached_property
    def weight_bytes(self) -> int:
        """Of the weights in memory, adapters included."""
        whole: int = sum(p.nbytes for p in self.model.parameters())
        return whole - self._saved_bytes()

    @property
    def _layers(self) -> list[nn.Module]:
        return [layer for stack in stacks_of(self.model).values() for layer in layers_of(stack)]

    def cache_bytes(self, size: Size, *, itemsize: int | None = None) -> int:
        """Of keys and values when the last token is written.

        That one is never read; an encoder-decoder reads one before the first.
        """
        config = self.model.config
        num_heads: int = config.num_attention_heads
        key_heads: int = getattr(config, "num_key_value_heads", None) or num_heads
        head_width: int = getattr(config, "head_dim", None) or config.hidden_size // num_heads
        length = size.num_prompt_tokens + size.num_tokens - (not self.is_encoder_decoder)
        width = 2 * len(layers_of(self.model.get_decoder())) * key_heads * head_width
        return size.rows * length * width * (itemsize or self.model.dtype.itemsize)

    @cached_property
    def num_cast(self) -> int:
        """Weights of linear layers that are trained, of which autocast keeps copies."""
        weights = (_weight(layer) for _, layer in self._linear_layers())
        return sum(weight.numel() for weight in weights if weight.requires_grad)

    def _parameters(self, *, adapters: bool) -> Iterator[nn.Parameter]:
        for name, parameter in self.model.named_parameters():
            if (".lora_" in name) == adapters:
                yield parameter

    def _linear_layers(self) -> Iterator[tuple[set[str], nn.Module]]:
        """Those outside the output head, with the parts of their names."""
        for stack in stacks_of(self.model).values():
            for name, layer in linear_layers(stack):
                yield set(name.split(".")), layer

    def _saved_bytes(self) -> int:
        """What quantization saves; it leaves the output head alone."""
        if self.quantization is None:
            return 0
        kept: set[str] = set()
        if self.quantization.backend == "bitsandbytes":  # and layers that are always float32
            kept = set(self.model._keep_in_fp32_modules or ())
        weights = [
            _weight(layer)
            for parts, layer in self._linear_layers()
            if isinstance(layer, nn.Linear) and not kept & parts
        ]
        return sum(w.nbytes - _quantized_bytes(w, self.quantization) for w in weights)


def stacks_of(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Encoder and decoder, or the decoder alone; the output head is in none of them."""
    encoder = {"encoder": model.get_encoder()} if model.config.is_encoder_decoder else {}
    return {**encoder, "decoder": model.get_decoder()}


def _quantized_bytes(weight: torch.Tensor, quantization: Quantization) -> int:
    """Of a linear layer's weight (out, in), with the scales that belong to it."""
    rows, count = weight.shape[0], weight.numel()
    match quantization.backend, quantization.bits:
        case "bitsandbytes", 8:  # a float32 a row
            return count + 4 * rows
        case "bitsandbytes", 4:  # a float32 for each 64 weights, and the code book of 16
            return -(-count // 2) + 4 * -(-count // 64) + 4 * 16
        case "torchao", 8:  # a scale a row in the type of the weights, and a zero point
            return count + (weight.element_size() + 1) * rows
        case _:  # scale and zero point for each 128 weights of a row
            return count // 2 + 2 * weight.element_size() * rows * -(-weight.shape[1] // 128)


def _bytes(parameters: Iterable[nn.Parameter], trainable: bool) -> int:
    return sum(p.nbytes for p in parameters if p.requires_grad or not trainable)


def _weight(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight


# Where the shapes of a run's models come from.


def teacher_shapes(config: RunConfig) -> tuple[ModelShape, ...]:
    """The teachers of a run; none of those behind servers.

    Raises:
        ModelError: the shapes of one are not known without downloading it.
    """
    if config.teacher.several is not None:
        return tuple(_load(one) for one in config.teacher.several if one.server is None)
    shape = _teacher_shape(config)
    return () if shape is None else (shape,)


def _teacher_shape(config: RunConfig) -> ModelShape | None:
    settings = config.teacher
    if settings.server is not None:
        return None
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


def student_shape(config: RunConfig, teacher: ModelShape | None) -> ModelShape:
    """The student of a run; of one from scratch the vocabulary is at most its own or the teacher's.

    Beside a server it is that of the tokenizer, which is loaded.

    Raises:
        ModelError: its shapes are not known without downloading it, or it keeps more layers than
            the teacher has.
    """
    settings = config.student
    if settings.keep_layers is not None:
        assert teacher is not None
        shape = _keep(teacher, settings.keep_layers, DTYPES[settings.dtype])
    elif settings.build is not None:
        shape = _build(settings.build, _rows(config, teacher))
    else:
        shape = _load(settings)
    if settings.lora is not None:
        shape = replace(shape, model=copy.deepcopy(shape.model))
        add_adapters(shape.model, settings.lora, seed=0)
    return shape


def _rows(config: RunConfig, teacher: ModelShape | None) -> int:
    """Rows that the head of a student from scratch needs, at most."""
    own = config.student.tokenizer or (config.teacher.tokenizer if teacher is None else None)
    if own is None:
        assert teacher is not None
        return len(teacher.head)
    if own.path is None:
        return own.vocab_size
    tokenizer, _ = load_tokenizer(own.path)
    return int(max(tokenizer.get_vocab().values())) + 1


def known_models() -> list[str]:
    """Hub names whose shapes come with the package."""
    return sorted(path.stem.replace("--", "/") for path in CONFIGS.glob("*.json"))


def _load(settings: ModelSettings) -> ModelShape:
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


def _find_config(settings: ModelSettings) -> Path:
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
