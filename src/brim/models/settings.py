"""What a recipe says about models, and what the functions of this folder take; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from brim.config.loading import Config

Centering = Literal["none", "mean", "max", "logsumexp"]
DType = Literal["float32", "bfloat16", "float16", "auto"]
TokenizerKind = Literal["word", "bpe"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a policy draws a token from: `softmax(logits / temperature)` over the tokens it keeps.

    All tokens are kept unless `top_k` or `top_p` is set; the others then have probability 0. With
    both, `top_p` counts the probability that `top_k` left over. What ties with the last token kept
    is kept too, so that the set depends on the logits alone, never on how equal ones are sorted.

    Attributes:
        temperature: divides the logits.
        top_k: keep the k most probable tokens; None for all.
        top_p: keep the fewest most probable tokens that hold this much probability; None for all.

    Raises:
        ValueError: a number is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError("temperature must be positive; for the maximum use strategy='greedy'")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError("top_k must be at least 1, or None to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError("top_p must be in (0, 1], or None to keep all tokens")


SOFTMAX = Distribution()
"""All tokens, at temperature 1."""


class Decoding(Config):
    """How the student writes its rollouts, and the token limits of everything that is read."""

    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longer prompts are cut, and counted; null for no limit."""
    max_tokens: int = Field(64, ge=1)
    """Longest completion; longer targets are cut, and counted."""
    strategy: Literal["sampling", "greedy"] = "sampling"
    """The policy gradient needs samples; `greedy` is the paper's section 3.1."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits of the policy that samples, and that the gradient improves."""
    top_k: int | None = Field(None, ge=1)
    """Sample among the k likeliest tokens only; the gradient is of that distribution."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample among the likeliest tokens that make up this probability, of what `top_k` keeps; the
    gradient is of that distribution."""
    batch_tokens: int = Field(32768, ge=1)
    """Tokens that generation holds at once: of each row its prompt, padding, and all that it may
    write. A matter of memory and speed only."""
    engine: Literal["loop", "generate", "vllm"] = "loop"
    """What samples: `loop` is this package's own, in which a row's text depends on its seed alone;
    `generate` is transformers'; `vllm` is for decoder-only students wherever vLLM itself runs,
    and needs the extra of its name. Greedy text of evaluations and teachers is the loop's."""

    @field_validator("top_k", "top_p")
    @classmethod
    def _of_sampling(cls, value: _T, info: ValidationInfo) -> _T:
        strategy = info.data.get("strategy", "sampling")
        if value is not None and strategy != "sampling":
            raise ValueError(
                f"is for strategy sampling, not {strategy}; leave it out (null), or change the "
                "strategy"
            )
        return value

    @model_validator(mode="after")
    def _as_vllm_samples(self) -> Self:
        if self.engine == "vllm" and self.temperature < 0.01:
            raise ValueError(
                f"engine: vllm samples at a temperature of 0.01 where it is {self.temperature}; "
                "raise it, or choose loop"
            )
        return self

    @property
    def distribution(self) -> Distribution:
        """What the tokens are drawn from, and what a policy gradient is of."""
        return Distribution(self.temperature, self.top_k, self.top_p)

    @property
    def texts_per_row(self) -> int:
        """Texts that generation holds of each row at once."""
        return 1

    def greedy(self, batch_tokens: int) -> Decoding:
        """Greedy decoding under the same limits, for evaluation and teacher outputs."""
        return Decoding(strategy="greedy", max_tokens=self.max_tokens, batch_tokens=batch_tokens)

    def describe(self) -> dict[str, Any]:
        """All that decides how a text is written, for hashes and results."""
        beams = {"num_beams": 1, "length_penalty": 1.0}
        return {**beams, **self.model_dump(exclude={"max_prompt_tokens"})}


class BeamSearch(Decoding):
    """The search for the text of the highest `log π(text) / tokens ** length_penalty`."""

    strategy: Literal["beam"] = "beam"  # type: ignore[assignment]
    engine: Literal["generate"] = "generate"
    """Transformers': the loop has no beams."""
    num_beams: int = Field(4, ge=1)
    """Texts that are kept of each row at every token; each counts in `batch_tokens`."""
    length_penalty: float = 1.0
    """0 for the likeliest text, 1 for the likeliest token on average."""

    @property
    def texts_per_row(self) -> int:
        """Texts that generation holds of each row at once."""
        return self.num_beams


# What the strategies of an evaluation have settings for, and what null stands for there.
_SETTINGS_OF: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 4, "length_penalty": 1.0},
    "sampling": {"temperature": 1.0, "top_k": None, "top_p": None, "num_samples": 1},
}


class EvaluationDecoding(Config):
    """How the text that is scored is written, up to `decoding.max_tokens`.

    It is for the test split and for the objective's validation. The teacher and the pre-distilled
    student, which runs share, are always picked by greedy text.
    """

    strategy: Literal["greedy", "beam", "sampling"] = "greedy"
    """`greedy` takes the likeliest token, `beam` searches for the likeliest text, `sampling` draws
    from the model's distribution."""
    num_beams: int | None = Field(None, ge=1)
    """Texts that beam search keeps at every token; null for 4. Each counts in
    `evaluation.batch_tokens`."""
    length_penalty: float | None = None
    """Beam search looks for the highest log-probability divided by `tokens ** length_penalty`: 0
    for the likeliest text, 1 for the likeliest tokens on average; null for 1."""
    temperature: float | None = Field(None, gt=0)
    """Divides the logits; sampling only; null for 1."""
    top_k: int | None = Field(None, ge=1)
    """Sample among the k likeliest tokens only."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Sample among the likeliest tokens that make up this probability."""
    num_samples: int = Field(1, ge=1)
    """Sampled completions of each prompt: scores are over all of them, intervals over prompts."""

    @field_validator("num_beams", "length_penalty", "temperature", "top_k", "top_p", "num_samples")
    @classmethod
    def _of_the_strategy(cls, value: _T, info: ValidationInfo) -> _T:
        default = cls.model_fields[str(info.field_name)].default
        chosen = info.data.get("strategy")
        for strategy, names in _SETTINGS_OF.items() if chosen and value != default else ():
            if info.field_name in names and strategy != chosen:
                raise ValueError(
                    f"is for strategy {strategy}, not {chosen}; leave it out "
                    f"({'null' if default is None else default}), or change the strategy"
                )
        return value

    def build(self, max_tokens: int, batch_tokens: int) -> Decoding:
        """Return the decoding of one text under these limits."""
        own = {name: value for name, value in self._own().items() if name != "num_samples"}
        if self.strategy == "beam":
            return BeamSearch(max_tokens=max_tokens, batch_tokens=batch_tokens, **own)
        return Decoding(
            max_tokens=max_tokens, strategy=self.strategy, batch_tokens=batch_tokens, **own
        )

    def describe(self) -> dict[str, Any]:
        """The strategy and its own settings, for `results.json`."""
        return {"strategy": self.strategy, **self._own()}

    def _own(self) -> dict[str, Any]:
        given = self.model_dump(exclude_none=True)
        return {name: given.get(name, null) for name, null in _SETTINGS_OF[self.strategy].items()}


class _Description(Config):
    """A model from scratch: the keys of every family."""

    d_model: int = Field(ge=1)
    """Width of the hidden states."""
    layers: int = Field(ge=1)
    """Layers, of the encoder where there is one."""
    heads: int = Field(ge=1)
    """Attention heads, each of d_model / heads dimensions."""
    d_ff: int | None = Field(None, ge=1)
    """Width of the feed-forward layers; null for 4 d_model."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout; llama and qwen2 have it on their attention weights only."""
    tied: bool = True
    """Whether the output head is the input embedding; false for t5 and mt5."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide d_model ({self.d_model})")
        return self

    @property
    def width(self) -> int:
        """Of the feed-forward layers."""
        return self.d_ff or 4 * self.d_model


class T5Description(_Description):
    """A T5 from scratch."""

    family: Literal["t5"]

    decoder_layers: int | None = Field(None, ge=1)
    """Layers of the decoder; null for as many as the encoder has."""
    feed_forward: Literal["relu", "gated-gelu"] = "relu"
    """T5's feed-forward layers, or those of T5-v1.1."""
    tied: bool = False
    """Whether the output head is the input embedding; false, as in T5-v1.1, for one of its own."""


class MT5Description(T5Description):
    """An mT5 from scratch."""

    family: Literal["mt5"]  # type: ignore[assignment]

    feed_forward: Literal["relu", "gated-gelu"] = "gated-gelu"
    """As for T5."""


class GPT2Description(_Description):
    """A GPT-2 from scratch."""

    family: Literal["gpt2"]

    max_positions: int = Field(1024, ge=1)
    """Longest prompt and completion together, in tokens."""


class LlamaDescription(_Description):
    """A Llama from scratch."""

    family: Literal["llama"]

    kv_heads: int | None = Field(None, ge=1)
    """Heads of keys and values, each shared by several queries; null for as many as `heads`."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.heads % (self.kv_heads or 1):
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.d_model // self.heads % 2:
            raise ValueError("d_model / heads must be even, for positions rotate pairs")
        return self


class Qwen2Description(LlamaDescription):
    """A Qwen2 from scratch."""

    family: Literal["qwen2"]  # type: ignore[assignment]


Description = Annotated[
    T5Description | MT5Description | GPT2Description | LlamaDescription | Qwen2Description,
    Field(discriminator="family"),
]
"""What a model from scratch is described by."""
_DESCRIPTION: TypeAdapter[Any] = TypeAdapter(Description)


def check_description(description: dict[str, Any]) -> dict[str, Any]:
    """Return the description as it is, where `build_model` takes it.

    Raises:
        ValidationError: an unknown family or key, or a value that cannot be used.
    """
    _DESCRIPTION.validate_python(description, strict=True)
    return description


class _SchemaOfBuild:
    """Gives the mapping the JSON Schema of a description, for editors and the page of settings."""

    def __get_pydantic_json_schema__(self, _: Any, handler: Any) -> Any:
        return handler(_DESCRIPTION.core_schema)


class TokenizerSettings(Config):
    """A tokenizer: trained on the task's training text for models from scratch, or loaded."""

    path: str | None = None
    """Folder or hub name whose tokenizer it is; null to train one."""
    kind: TokenizerKind = "bpe"
    """`word` splits at spaces; `bpe` learns pieces of words, digits one by one."""
    vocab_size: int = Field(1000, ge=8)
    """Upper bound of the number of tokens."""

    @model_validator(mode="after")
    def _loaded_or_trained(self) -> Self:
        if self.path is not None and (self.kind, self.vocab_size) != ("bpe", 1000):
            raise ValueError("kind and vocab_size are for one to train; leave them out beside path")
        return self


class ModelSettings(Config):
    """Where a model comes from: exactly one of `sources` is given."""

    sources: ClassVar[tuple[str, ...]] = ("path", "build")

    path: str | None = None
    """Folder or hub name of a model to load."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run code that comes with the model; read it first."""
    build: (
        Annotated[dict[str, Any], AfterValidator(check_description), Description, _SchemaOfBuild()]
        | None
    ) = None
    """A model from scratch: `family`, `d_model`, `layers` and more, see the docs page on models."""
    dtype: DType = "float32"
    """Type of the loaded weights. What is trained is float32, or has adapters (LoRA); to compute in
    bfloat16, set `trainer.precision`."""

    @model_validator(mode="after")
    def _nothing_to_load(self) -> Self:
        # Not whether they were given: a run's own config.yaml spells every default out.
        for name in ("revision", "trust_remote_code", "dtype") if self.build is not None else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for a loaded model (path); leave it out beside build")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(getattr(self, name) is not None for name in self.sources) != 1:
            names = ", ".join(self.sources)
            raise ValueError(f"give exactly one of {names}; set the others to null")
        return self


class Quantization(Config):
    """Linear layers of the teacher with fewer bits a weight.

    The output head, which gives the Q-values, and the embeddings keep theirs. The docs page on
    models says what works where.
    """

    backend: Literal["bitsandbytes", "torchao"]
    """The package that does it; each needs the extra of its name."""
    bits: Literal[8, 4]
    """Of a weight."""
    drift_examples: int = Field(64, ge=0)
    """Training examples whose targets are read by the unquantized teacher too, once, to write into
    `manifest.json` how far the Q-values moved; 0 for none, as where it does not fit into memory."""

    def __str__(self) -> str:
        return f"{self.backend}, {self.bits} bits"


class Lora(Config):
    """Adapters (LoRA): frozen weights, and trainable matrices `B A` beside the linear layers.

    Each stage begins with fresh ones; what it leaves in `best/` is the merged model. They want a
    higher learning rate than the weights themselves.
    """

    r: int = Field(8, ge=1)
    """Rank: rows of `A`, columns of `B`."""
    alpha: float = Field(16.0, gt=0)
    """`B A` is multiplied by `alpha / r`."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of what the adapters read; none where `trainer.dropout` may not be."""
    target_modules: tuple[str, ...] | None = Field(None, min_length=1)
    """Names of the layers, such as `[q_proj, v_proj]`; null for all linear layers but the output
    head."""
