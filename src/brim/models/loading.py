"""Loading a model by name or path, and the fingerprint by which a run knows it again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from brim.errors import ModelError, RunError, first_line
from brim.models.encoding import Encoder
from brim.models.generation_settings import ignored_settings
from brim.models.head_checks import check_stored_head, hash_tensors, start_token_id
from brim.models.language_model import LanguageModel
from brim.models.modes import usable_device
from brim.models.quantization import (
    check_available,
    check_quantized,
    head_of_config,
    plain_tensors,
    prepare_stored,
    stored_quantization,
    transformers_config,
)
from brim.models.settings import Quantization
from brim.models.smollm2 import SMOLLM2_NAME, load_smollm2, load_smollm2_tokenizer
from brim.models.tokenizers import definition, end_token_ids, has_target_mode, without_end
from brim.support.seals import OF_A_RESUME, find_damage, is_sealed

logger = logging.getLogger(__name__)

DTYPES: dict[str, Any] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}

# What a model directory must hold. Without the last, transformers would make up a tokenizer.
_REQUIRED_FILES = {
    "config.json": ("config.json",),
    "safetensors weights": ("model*.safetensors",),
    "tokenizer files": ("tokenizer*", "*.model", "vocab*"),
}

_HUB_TIMEOUT_SECONDS = 10.0

_RULES = "tokenizer.json"


def load_model(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
    verified: bool = False,
) -> LanguageModel:
    """Load a model and its tokenizer from a directory or the Hugging Face hub.

    The weights must be safetensors, all of them present; the output head in memory is compared
    with the one in the file, and every file of a sealed directory with its SHA-256. The model comes
    in evaluation mode.

    Args:
        name_or_path: a directory in `save_pretrained` layout, a hub id, or `SMOLLM2_NAME`.
        revision: branch, tag or commit on the hub.
        dtype: of the weights: `float32`, `bfloat16`, `float16`, or `auto` for the file's own.
        device: where the weights go.
        trust_remote_code: run Python code that the model brings along.
        quantization: of the linear layers; None also for a folder that stores them so.
        verified: the directory has just been compared with its seal.

    Raises:
        RunError: a file of a sealed directory is not what was written.
        ModelError: the model cannot be found or read, or is not a language model with a head, or
            cannot be quantized as asked; or there is no such device.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    device = usable_device(device)
    if quantization is not None:
        check_available(quantization, dtype, device)
    if str(name_or_path) == SMOLLM2_NAME and not Path(name_or_path).is_dir():
        if quantization is not None:
            raise ModelError(
                f"quantization: {SMOLLM2_NAME} is read from a format of its own; save it with "
                "LanguageModel.save and give that folder as the path"
            )
        return load_smollm2(dtype=DTYPES["float32" if dtype == "auto" else dtype], device=device)
    name = _find(name_or_path, revision)
    if not verified:
        _check_seal(Path(name))
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        # Marian's loader draws numbers that it then throws away.
        with _without_tying_advice(), torch.random.fork_rng(devices=[]):
            model, tokenizer, bits, missing = _read(name, dtype, device, quantization, options)
        directory = Path(cached_file(name, "config.json", revision=revision)).parent
    except ModelError:
        raise
    except Exception as error:  # of the code of any kind of model
        mend = "; allow it with trust_remote_code" if "trust_remote_code" in str(error) else ""
        raise ModelError(f"cannot load the model {name!r}: {first_line(error)}{mend}") from error
    _check_files(directory)
    if missing:
        raise ModelError(
            f"cannot load the model {name!r}: {len(missing)} of its weights are not in the file, "
            f"such as {min(missing)}; choose a checkpoint of a whole language model"
        )
    if bits is None:
        model = model.to(device)
    else:  # it is on its device already
        check_quantized(model, bits)
    check_stored_head(model, directory)
    _warn_of_ignored(name, tuple(ignored_settings(model)))
    return LanguageModel(model, tokenizer)


def load_encoder(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> Encoder:
    """Load what turns text into a model's token ids, without its weights, which need not be there.

    Args:
        name_or_path: a directory with `config.json` and tokenizer files, or a hub id.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run Python code that the model brings along.

    Raises:
        ModelError: it cannot be found or read.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        _check_files(folder, ["config.json"])
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer, generation = load_tokenizer(name_or_path, **options)  # type: ignore[arg-type]
    name = str(folder)
    if name == SMOLLM2_NAME and not folder.is_dir():
        return Encoder(tokenizer, (tokenizer.eos_token_id,), None)
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except Exception as error:  # of the code of any kind of model
        raise ModelError(f"cannot load the config of {name!r}: {first_line(error)}") from error
    model: Any = SimpleNamespace(config=config, generation_config=generation, name_or_path=name)
    ends = end_token_ids(model, tokenizer)
    if config.is_encoder_decoder:
        return Encoder(tokenizer, ends, start_token_id(model))
    return Encoder(without_end(tokenizer, ends), ends, None)


def load_tokenizer(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedTokenizerBase, GenerationConfig]:
    """Load a model's tokenizer without the model, and the generation settings beside it, if any.

    Args:
        name_or_path: as of `load_model`; a directory may hold a tokenizer alone.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run Python code that comes with the tokenizer.

    Raises:
        ModelError: it cannot be found or read.
    """
    folder = Path(name_or_path).expanduser()
    if str(name_or_path) == SMOLLM2_NAME and not folder.is_dir():
        return load_smollm2_tokenizer(), GenerationConfig()
    if folder.is_dir():
        _check_files(folder, ["tokenizer files"])
    name = str(folder) if folder.is_dir() else _find(name_or_path, revision)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = _read_tokenizer(name, options)
    except Exception as error:  # of the code of any kind of tokenizer
        raise ModelError(f"cannot load the tokenizer of {name!r}: {first_line(error)}") from error
    with suppress(OSError, ValueError):
        return tokenizer, GenerationConfig.from_pretrained(name, revision=revision)
    with suppress(OSError, ValueError):  # older models have these settings in config.json
        config = AutoConfig.from_pretrained(name, **options)
        return tokenizer, GenerationConfig.from_model_config(config)
    return tokenizer, GenerationConfig()


@cache
def _warn_of_ignored(name: str, settings: tuple[str, ...]) -> None:
    if settings:
        logger.warning(
            "%s: its generation settings also say %s, which brim does not follow; transformers' "
            "generate, which does, may write other text than brim",
            name,
            ", ".join(settings),
        )


def _find(name_or_path: str | Path, revision: str | None) -> str:
    """The directory or hub id as a string, once it is known to exist."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        _check_files(path)
        return str(path)
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: no such directory; give a model's directory or a hub id")
    try:
        if not try_to_load_from_cache(name, "config.json", revision=revision):
            # One question without the minute of retries that loading would take.
            HfApi().repo_info(name, revision=revision, timeout=_HUB_TIMEOUT_SECONDS)
    except Exception as error:  # the hub passes on the errors of whatever HTTP library it uses
        raise ModelError(
            f"{name!r} is no directory, and the hub does not give it ({first_line(error)}); "
            "check the name and the network, or give a model's directory"
        ) from error
    return name


def place_of(name_or_path: str | Path, revision: str | None = None) -> str:
    """Return in words where `load_model` finds a model: a folder, the hub's cache, or the hub."""
    name = str(name_or_path)
    if name == SMOLLM2_NAME or Path(name).expanduser().is_dir():
        return name
    cached = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    return f"{name} ({'downloaded before' if cached else 'downloading from the hub'})"


def _check_seal(directory: Path) -> None:
    if not is_sealed(directory):
        return
    damage = find_damage(directory, lambda name: Path(name).parts[0] not in OF_A_RESUME)
    if damage is not None:
        raise RunError(
            f"{directory}: damaged: {damage}; bring it back, or start again the brim train that "
            "wrote it, which makes it again where it can"
        )


def _check_files(directory: Path, needed: Collection[str] = tuple(_REQUIRED_FILES)) -> None:
    for what in needed:
        patterns = _REQUIRED_FILES[what]
        if not any(found for pattern in patterns for found in directory.glob(pattern)):
            raise ModelError(
                f"{directory}: has no {what}; save the model and its tokenizer there with "
                "save_pretrained"
            )


def _read(
    name: str,
    dtype: str,
    device: torch.device,
    quantization: Quantization | None,
    options: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Quantization | None, set[str]]:
    """Model, tokenizer, how weights are kept, and the names of those that the file lacks."""
    config = AutoConfig.from_pretrained(name, **options)
    stored = stored_quantization(config, name)
    storage: dict[str, Any] = {}
    if stored is not None:
        if quantization is not None:
            raise ModelError(
                f"quantization: the weights of {name} are stored in {stored} already; set it "
                "to null, or give the model as it was before"
            )
        prepare_stored(config, stored, dtype, device)
        storage = {"device_map": {"": device}}
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    _check_has_head(name, config)
    if quantization is not None:
        head = head_of_config(auto_class, config, trust_remote_code=options["trust_remote_code"])
        settings = transformers_config(quantization, head, device)
        storage = {"device_map": {"": device}, "quantization_config": settings}
    model, info = auto_class.from_pretrained(
        name,
        config=config,
        dtype=DTYPES[dtype],
        use_safetensors=True,
        output_loading_info=True,
        **options,
        **storage,
    )
    tokenizer = _read_tokenizer(name, options)
    return model, tokenizer, quantization or stored, set(info["missing_keys"])


def _check_has_head(name: str, config: PreTrainedConfig) -> None:
    known = type(config) in (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        if config.is_encoder_decoder
        else MODEL_FOR_CAUSAL_LM_MAPPING
    )
    if not known and not hasattr(config, "auto_map"):
        raise ModelError(
            f"{name}: a {config.model_type} model as its config.json describes it has no "
            "language-modeling head; choose a causal or sequence-to-sequence language model"
        )


def _read_tokenizer(name: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that its tokenizer.json describes, where there is such a file.

    For many classes (GPT-2's, Qwen2's, mBART's) AutoTokenizer reads only the vocabulary of that
    file, and adds the rules of the class.
    """
    general = PreTrainedTokenizerFast.from_pretrained
    declared = get_tokenizer_config(name, **options).get("tokenizer_class")
    if declared in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        return general(name, **options)
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    rules = {"revision": options["revision"], "_raise_exceptions_for_missing_entries": False}
    file = cached_file(name, _RULES, **rules)
    rebuilt, kind = definition(tokenizer), type(tokenizer)
    if not (rebuilt and file is not None and kind.__module__.startswith("transformers.")):
        return tokenizer
    written = general(name, **options)
    stored = definition(written)
    if has_target_mode(tokenizer):  # such a class sets the post-processor to the language
        stored["post_processor"] = rebuilt["post_processor"]
    if rebuilt == stored:
        return tokenizer
    if not has_target_mode(tokenizer):
        return written
    logger.warning(
        "%s: %s differs from the rules of %s; brim reads text by the file, plain AutoTokenizer "
        "by the class",
        name,
        _RULES,
        kind.__name__,
    )
    return kind.from_pretrained(name, tokenizer_object=written.backend_tokenizer, **options)


@contextmanager
def _without_tying_advice() -> Iterator[None]:
    """Silence a warning about heads of their own, whose advice would break a T5's embeddings."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("The tied weights mapping and config")

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def fingerprint_model(model: LanguageModel) -> str:
    """SHA-256 of a model: its weights' every byte, its configuration, rules and tokenizer."""
    rules = [sorted(model.rules.excluded), model.rules.forced_start, model.rules.forces_end]
    return fingerprint_parts(model.model, model.tokenizer, rules)


def fingerprint_parts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rules: list[Any] | dict[str, Any]
) -> str:
    """SHA-256 of a model's weights and configuration, its tokenizer, and rules as JSON has them."""
    config = json.loads(model.config.to_json_string())
    config.pop("transformers_version", None)
    also = json.dumps([config, rules, describe_tokenizer(tokenizer)], sort_keys=True)
    weights = plain_tensors(model.state_dict())
    return hash_tensors(weights, also=also, into=hashlib.sha256())


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """All that decides about a tokenizer's ids, but for what is set at each call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    rules = {key: value for key, value in rules.items() if key not in ("truncation", "padding")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return [rules, special, tokenizer.chat_template]


def describe_model(model: LanguageModel) -> dict[str, str]:
    """What a manifest says of a model: `sha256`, its fingerprint, and the `commit` on the hub."""
    commit = getattr(model.model.config, "_commit_hash", None)
    return {"sha256": fingerprint_model(model), **({"commit": commit} if commit else {})}
