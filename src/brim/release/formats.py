"""The formats that a student is exported to, and what each can hold."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from brim.errors import ConfigError
from brim.runs.directory import RunDirectory
from brim.support.files import read_json

FormatName = Literal["ct2", "onnx"]


@dataclass(frozen=True, slots=True)
class Format:
    """A format of another engine's.

    Attributes:
        packages: that convert to it and read it; they are the extra of the format's name.
        bits: how its weights can be quantized.
        encoder_decoder: whether it holds models like T5.
    """

    packages: tuple[str, ...]
    bits: str
    encoder_decoder: bool


FORMATS: dict[FormatName, Format] = {
    "ct2": Format(("ctranslate2",), "int8", encoder_decoder=True),
    "onnx": Format(("onnxruntime_genai", "onnx_ir"), "int4", encoder_decoder=False),
}


def check_format(run: Path, to: FormatName, quantize: str | None) -> None:
    """Check what can be checked of an export before torch is imported.

    Raises:
        ConfigError: the extra is missing, or the format does not hold such a model.
        RunError: the run has no best checkpoint.
    """
    RunDirectory(run).check()
    RunDirectory(run).check_best()
    form = FORMATS[to]
    if missing := [name for name in form.packages if find_spec(name) is None]:
        raise ConfigError(
            f"--to {to}: needs the package {missing[0]}; pip install 'brim-distill[{to}]'"
        )
    if quantize not in (None, form.bits):
        raise ConfigError(f"--quantize: {quantize} is not of {to}; choose {form.bits}, or none")
    config = read_json(run / "best" / "config.json")
    if config.get("is_encoder_decoder") and not form.encoder_decoder:
        raise ConfigError(
            f"--to {to}: its converter knows no encoder-decoders such as {config['model_type']}; "
            "choose --to ct2"
        )
