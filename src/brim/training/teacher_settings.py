"""What a recipe says about its teacher, or about several."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from brim.models.server_settings import ServedModel
from brim.models.settings import Quantization
from brim.training.loop_settings import SupervisedConfig


class NamedTeacher(ServedModel):
    """One of several teachers, of one tokenizer all: a model to load, or behind a server."""

    sources = ("path", "server")

    name: str | None = None
    """What `task.teacher_column` calls it; without that column, for the eye only."""
    weight: float = Field(1.0, gt=0)
    """Of its Q-values where they are averaged; weights are divided by their sum."""


class OrList:
    """Has the JSON Schema of a teacher's settings take a list too."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        several = handler(TypeAdapter(list[NamedTeacher]).core_schema)
        return {"anyOf": [handler(schema), several]}


class TeacherConfig(ServedModel):
    """The model whose logits are the Q-values; a list is that of `several`."""

    sources = ("path", "build", "server", "several")
    loaded = ("device", "batch_tokens", "sharding", "seed", "train", "quantization")

    several: tuple[NamedTeacher, ...] | None = Field(None, min_length=2)
    """Teachers of one tokenizer: their Q-values are averaged, or each example has its own, which
    `task.teacher_column` names."""

    device: str | None = None
    """Where the teacher is, such as `cuda:1` or `cpu`; null for where the student is."""
    reads: Literal["tokens", "text"] = "tokens"
    """What it reads of the student's writing: the tokens, which the two must share, or the text, in
    tokens of its own, for a student of another tokenizer."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens of one pass of the teacher: rows of similar length, with their prompts and padding. A
    matter of memory and speed only."""
    sharding: Literal["none", "fsdp", "offload"] = "none"
    """`fsdp` leaves each process its part of the teacher's weights, which it reads layer by layer;
    `offload` keeps the parts in main memory, for one process too. One process has all of `fsdp`."""
    seed: int | None = Field(None, ge=0)
    """Of the teacher's first weights and training; null for the run's. With one set, runs of
    several seeds share a teacher, as the paper's do."""
    train: SupervisedConfig | None = None
    """Train or fine-tune the teacher on the task's targets first; null to take it as it is."""
    quantization: Quantization | None = None
    """Quantize the teacher as it is loaded; null for weights of `dtype`. Needs `path`, and no
    `train`."""

    @model_validator(mode="after")
    def _quantized_as_loaded(self) -> Self:
        if self.quantization is not None and self.path is None:
            raise ValueError("quantization is for a loaded model (path); leave it out beside build")
        if self.quantization is not None and self.train is not None:
            raise ValueError(
                "quantized weights cannot be trained; set train or quantization to null"
            )
        return self

    @model_validator(mode="after")
    def _several_as_loaded(self) -> Self:
        for name in ("train", "quantization", "seed") if self.several else ():
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is for one teacher; leave it out beside several")
        if self.several and self.sharding != "none":
            raise ValueError("sharding is for one teacher; set it to none beside several")
        return self

    @model_validator(mode="after")
    def _sharded_on_the_devices_of_processes(self) -> Self:
        if self.sharding != "none" and self.device is not None:
            raise ValueError("device: a sharded teacher is where its processes are; set it to null")
        if self.sharding != "none" and self.quantization is not None:
            raise ValueError(
                "quantized weights cannot be sharded; set sharding to none or quantization to null"
            )
        return self
