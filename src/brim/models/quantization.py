"""Teachers with few bits a weight, and what that does to their Q-values.

Linear layers are quantised while the weights are read. The output head is the Q-function: it is
named to every back end as a layer to leave alone, and looked at afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig

from brim.errors import ModelError
from brim.models.head import EXCLUDED, OutputHead
from brim.models.language_model import LanguageModel
from brim.types import Rollout


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the weights of linear layers are stored.

    Attributes:
        backend: the package that does it.
        bits: of a weight. `bitsandbytes` in 8 bits is LLM.int8(), in 4 bits nf4; `torchao` is
            weight-only, in 8 bits a row, in 4 bits a group of 128 weights.
    """

    backend: Literal["bitsandbytes", "torchao"]
    bits: Literal[8, 4]

    def __str__(self) -> str:
        return f"{self.backend}, {self.bits} bits"

    def check(self, *, dtype: str, device: str | torch.device) -> None:
        """Check what would fail in the middle of loading.

        Raises:
            ModelError: the back end is not installed, or cannot do it on this device.
        """
        if find_spec(self.backend) is None:
            raise ModelError(
                f"quantization: needs the package {self.backend}: "
                f"pip install 'brim-distill[{self.backend}]'"
            )
        if self.backend == "torchao" and self.bits == 4:
            if torch.device(device).type != "cuda":
                raise ModelError(
                    f"quantization: torchao's 4 bits need a CUDA GPU, and this is {device}; "
                    "choose 8 bits, or backend bitsandbytes"
                )
            if dtype != "bfloat16":
                raise ModelError(
                    f"quantization: torchao's 4 bits need dtype bfloat16, not {dtype}; set it"
                )

    def options(
        self, head: str, device: str | torch.device
    ) -> dict[str, BitsAndBytesConfig | TorchAoConfig | Mapping[str, Any]]:
        """Arguments of `from_pretrained`; `head` is the name of the layer to leave alone."""
        return {"quantization_config": self._config(head, torch.device(device))}

    def adjust(self, config: PreTrainedConfig, device: str | torch.device) -> None:
        """Have weights that are stored so computed with as `options` would have it."""
        if self == Quantization("bitsandbytes", 4) and torch.device(device).type == "cpu":
            config.quantization_config["bnb_4bit_compute_dtype"] = "float32"

    def _config(self, head: str, device: torch.device) -> BitsAndBytesConfig | TorchAoConfig:
        if self.backend == "bitsandbytes":
            if self.bits == 8:
                return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[head])
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
                llm_int8_skip_modules=[head],
            )
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

        # Inductor's settings are left as they are: torchao's would set the precision of every
        # float32 product of the process, the student's too.
        if self.bits == 8:
            scheme = Int8WeightOnlyConfig(set_inductor_config=False)
        else:  # in the packing whose kernel comes with torch
            scheme = Int4WeightOnlyConfig(
                int4_packing_format="tile_packed_to_4d", set_inductor_config=False
            )
        return TorchAoConfig(scheme, modules_to_not_convert=[head])


def stored_quantization(config: PreTrainedConfig, name: str) -> Quantization | None:
    """How the weights are stored in the files that a config belongs to, if with fewer bits.

    Args:
        config: of the model.
        name: of the model, for the error.

    Raises:
        ModelError: a package stored them that brim does not load.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    method = stored.get("quant_method") or "bitsandbytes"  # which older files do not name
    if method == "bitsandbytes":
        return Quantization("bitsandbytes", 4 if stored.get("load_in_4bit") else 8)
    if method == "torchao":
        return Quantization("torchao", 4 if "int4" in str(stored.get("quant_type")).lower() else 8)
    raise ModelError(
        f"quantization: the weights of {name} are stored by {method}, which is not supported; give "
        "one that is stored by bitsandbytes or torchao, or not quantised at all"
    )


def quantization_of(model: LanguageModel) -> Quantization | None:
    """How the weights of a model are kept, if with fewer bits, loaded or stored so."""
    return stored_quantization(model.model.config, type(model.model).__name__)


def head_name(auto_class: Any, config: PreTrainedConfig, *, trust_remote_code: bool) -> str:
    """The output head's name in a model of this config, without making its weights.

    Raises:
        ModelError: the model has no output head.
    """
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    names: list[str] = [name for name, module in model.named_modules() if module is head]
    if names:
        return names[0]
    raise ModelError(f"{type(model).__name__} has no output head; choose a language model")


def check_quantized(model: PreTrainedModel, quantization: Quantization) -> None:
    """Look at a model as it was read: the head must not be quantised, and something must be.

    Raises:
        ModelError: the output head is quantised, or nothing is, or a layer would be read wrongly.
    """
    name = type(model).__name__
    if _is_quantized(model.get_output_embeddings().weight):
        raise ModelError(
            f"quantization: {quantization.backend} quantised the output head of {name}, which "
            "gives the Q-values; choose another backend, or a folder whose head is not quantised"
        )
    if not any(map(_is_quantized, model.parameters())):
        raise ModelError(
            f"quantization: {quantization.backend} found no layer of {name} that it can quantise; "
            "choose another backend"
        )
    if quantization.backend == "bitsandbytes":
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(_keep)
    if quantization == Quantization("bitsandbytes", 4) and model.device.type == "cpu":
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
    """How far the Q-values of two teachers differ along the same text.

    Q-values are centred by their mean over the vocabulary, for a softmax does not know its offset.

    Args:
        teacher: quantised, say.
        reference: the same model in full precision, with the same tokenizer.
        rollouts: completions, of whoever wrote them, on the models' device.

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
            ours, theirs = teacher.read(rollout), reference.read(rollout)
            size = min(ours.head.chunk_tokens(), theirs.head.chunk_tokens())
            for start in range(0, len(ours.token_ids), size):
                rows = slice(start, start + size)
                parts.append(
                    _differences(
                        _centered(ours.head, ours.features[rows]),
                        _centered(theirs.head, theirs.features[rows]),
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
    """Both back ends keep quantised weights in parameters of classes of their own."""
    return type(weight) is not nn.Parameter


def _keep(record: logging.LogRecord) -> bool:
    """Drop what bitsandbytes says at every product of every layer."""
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")
