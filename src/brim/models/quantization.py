"""Teachers with few bits a weight, and what that does to their Q-values.

Linear layers are quantized while the weights are read. The output head is the Q-function: it is
named to every back end as a layer to leave alone, and looked at afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig

from brim.errors import ModelError
from brim.models.head import EXCLUDED, OutputHead
from brim.models.head_checks import head_name, head_weight
from brim.models.language_model import LanguageModel
from brim.models.settings import Quantization
from brim.types import Rollout


def check_available(quantization: Quantization, dtype: str, device: str | torch.device) -> None:
    """Check what would fail in the middle of loading.

    Raises:
        ModelError: the back end is not installed, or cannot do it on this device.
    """
    backend = quantization.backend
    if find_spec(backend) is None:
        raise ModelError(
            f"quantization: needs the package {backend}: pip install 'brim-distill[{backend}]'"
        )
    if backend == "torchao" and quantization.bits == 4:
        if torch.device(device).type != "cuda":
            raise ModelError(
                f"quantization: torchao's 4 bits need a CUDA GPU, and this is {device}; "
                "choose 8 bits, or backend bitsandbytes"
            )
        if dtype != "bfloat16":
            raise ModelError(
                f"quantization: torchao's 4 bits need dtype bfloat16, not {dtype}; set it"
            )


def transformers_config(
    quantization: Quantization, head: str, device: torch.device
) -> BitsAndBytesConfig | TorchAoConfig:
    """The `quantization_config` of `from_pretrained`; `head` is the layer to leave alone.

    `bitsandbytes` in 8 bits is LLM.int8(), in 4 bits nf4; `torchao` is weight-only, in 8 bits a
    row, in 4 bits a group of 128 weights.
    """
    if quantization.backend == "bitsandbytes":
        if quantization.bits == 8:
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[head])
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
            llm_int8_skip_modules=[head],
        )
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    # Inductor's settings are left as they are: torchao's would set the precision of every float32
    # product of the process, the student's too.
    if quantization.bits == 8:
        scheme = Int8WeightOnlyConfig(set_inductor_config=False)
    else:  # in the packing whose kernel comes with torch
        scheme = Int4WeightOnlyConfig(
            int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )
    return TorchAoConfig(scheme, modules_to_not_convert=[head])


def _is_nf4(quantization: Quantization) -> bool:
    return (quantization.backend, quantization.bits) == ("bitsandbytes", 4)


def prepare_stored(
    config: PreTrainedConfig, stored: Quantization, dtype: str, device: torch.device
) -> None:
    """Check that weights that are stored so can be read, and have the config do it.

    Raises:
        ModelError: as `check_available`.
    """
    check_available(stored, dtype, device)
    if _is_nf4(stored) and device.type == "cpu":  # as `transformers_config` would have it
        config.quantization_config["bnb_4bit_compute_dtype"] = "float32"


def stored_quantization(config: PreTrainedConfig, name: str) -> Quantization | None:
    """How the weights are stored in the files that a config belongs to, if with fewer bits.

    Raises:
        ModelError: a package stored them that brim does not load.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    method = stored.get("quant_method") or "bitsandbytes"  # which older files do not name
    if method == "bitsandbytes":
        return Quantization(backend=method, bits=4 if stored.get("load_in_4bit") else 8)
    if method == "torchao":
        int4 = "int4" in str(stored.get("quant_type")).lower()
        return Quantization(backend=method, bits=4 if int4 else 8)
    raise ModelError(
        f"quantization: the weights of {name} are stored by {method}, which is not supported; give "
        "one that is stored by bitsandbytes or torchao, or not quantized at all"
    )


def quantization_of(model: LanguageModel) -> Quantization | None:
    """How the weights of a model are kept, if with fewer bits, loaded or stored so."""
    return stored_quantization(model.model.config, type(model.model).__name__)


def head_of_config(auto_class: Any, config: PreTrainedConfig, *, trust_remote_code: bool) -> str:
    """The output head's name in a model of this config, without making its weights.

    Raises:
        ModelError: the model has no output head.
    """
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    head_weight(model)
    return head_name(model).removesuffix(".weight")


def check_quantized(model: PreTrainedModel, quantization: Quantization) -> None:
    """Check a model as it was read.

    Raises:
        ModelError: the output head is quantized, or nothing is, or a layer would be read wrongly.
    """
    name = type(model).__name__
    if _is_quantized(model.get_output_embeddings().weight):
        raise ModelError(
            f"quantization: {quantization.backend} quantized the output head of {name}, which "
            "gives the Q-values; choose another backend, or a folder whose head is not quantized"
        )
    if not any(map(_is_quantized, model.parameters())):
        raise ModelError(
            f"quantization: {quantization.backend} found no layer of {name} that it can quantize; "
            "choose another backend"
        )
    if quantization.backend == "bitsandbytes":
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_keep)
    if _is_nf4(quantization) and model.device.type == "cpu":
        _check_on_cpu(model)


def _check_on_cpu(model: PreTrainedModel) -> None:
    """Keep 4-bit layers of bitsandbytes (0.50) from what its products do wrong on a CPU."""
    for path, module in model.named_modules():
        if not hasattr(module, "quant_state"):
            continue
        # With AVX-512, blocks of 64 weights that end in the next row are read with wrong scales.
        if module.in_features % 64:
            raise ModelError(
                f"quantization: bitsandbytes reads 4 bits wrongly on a CPU where a layer's width "
                f"is no multiple of 64, and that of {path} is {module.in_features}; choose 8 bits"
            )
        # Or the first product would pack them anew and be made in bfloat16, whatever was asked for.
        module.support_avx512bf16_for_cpu = False


def plain_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with torchao's tensors taken apart into the plain ones inside them."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if hasattr(tensor, "__tensor_flatten__"):
            parts, _ = tensor.__tensor_flatten__()
            plain |= plain_tensors({f"{name}.{part}": getattr(tensor, part) for part in parts})
        else:
            plain[name] = tensor
    return plain


def q_drift(
    teacher: LanguageModel, reference: LanguageModel, rollouts: Iterable[Rollout]
) -> dict[str, float]:
    """How far Q-values of a quantized teacher and of the same in full precision differ along text.

    Q-values are centered by their mean over the vocabulary, for a softmax does not know its offset.

    Returns:
        `num_tokens`; `mean_*` and `max_*` of the absolute difference of `taken` = q(s, a), of
        `best` = max q(s, ·) and of `regret` = best - taken; `reference_regret`, the mean regret
        under the reference, to compare with; `same_best`, the share of states with the same best
        token; `kl`, the mean of KL(reference ‖ teacher) in nats.

    Raises:
        ValueError: there is not one token.
    """
    parts = []
    for rollout in rollouts:
        with teacher.evaluating(), reference.evaluating():
            ours, theirs = teacher.features(rollout), reference.features(rollout)
            size = min(ours.head.chunk_tokens(), theirs.head.chunk_tokens())
            for start in range(0, len(ours.token_ids), size):
                rows = slice(start, start + size)
                parts.append(
                    _differences(
                        _centered(ours.head, ours.hidden[rows]),
                        _centered(theirs.head, theirs.hidden[rows]),
                        ours.token_ids[rows],
                    )
                )
    if not parts:
        raise ValueError("there are no tokens to compare the teachers on")
    every = {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}
    found = {f"mean_{name}": float(every[name].mean()) for name in ("taken", "best", "regret")}
    found |= {f"max_{name}": float(every[name].max()) for name in ("taken", "best", "regret")}
    found |= {name: float(every[name].mean()) for name in ("reference_regret", "same_best", "kl")}
    return {"num_tokens": len(every["kl"]), **found}


def _centered(head: OutputHead, hidden: Tensor) -> Tensor:
    """(n, d) features as (n, V) float32 logits, less their mean over the rows with a token."""
    logits = head.logits(hidden)
    has_token = logits > EXCLUDED / 2
    return logits - logits.where(has_token, 0).sum(1, keepdim=True) / has_token.sum(1, keepdim=True)


def _differences(ours: Tensor, theirs: Tensor, token_ids: Tensor) -> dict[str, Tensor]:
    """What `q_drift` sums up, (n,) each, of two (n, V) logits."""
    taken, expected_taken = (q.gather(1, token_ids[:, None]).squeeze(1) for q in (ours, theirs))
    best, expected_best = ours.amax(1), theirs.amax(1)
    regret = expected_best - expected_taken
    logprobs, expected_logprobs = ours.log_softmax(1), theirs.log_softmax(1)
    return {
        "taken": (taken - expected_taken).abs(),
        "best": (best - expected_best).abs(),
        "regret": (best - taken - regret).abs(),
        "reference_regret": regret,
        "same_best": ours.argmax(1) == theirs.argmax(1),
        "kl": (expected_logprobs.exp() * (expected_logprobs - logprobs)).sum(1),
    }


def _is_quantized(weight: Tensor) -> bool:
    """Both back ends keep quantized weights in parameters of classes of their own."""
    return type(weight) is not nn.Parameter


def _keep(record: logging.LogRecord) -> bool:
    """Drop what bitsandbytes says at every product of every layer."""
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")
