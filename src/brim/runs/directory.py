"""A run directory, read: provenance, settings, logs, scores and texts that a run left behind.

Everything that looks at a run, a stage or an evaluation reads it here, without torch, and compared
with its hashes. `runs/train.py` writes a run directory, `runs/evaluate.py` its results.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brim.config.yaml import parse
from brim.errors import BrimError, ConfigError, RunError
from brim.metrics import Score
from brim.metrics.regrets import REGRETS
from brim.support.files import read_json, sha256_file
from brim.support.json_lines import BAD_ROW, JsonLines
from brim.support.seals import (
    LOGS,
    MANIFEST,
    beginning_damage,
    checkpoints_in,
    file_damage,
    find_damage,
    is_sealed,
)
from brim.training.checkpoints import latest_state
from brim.training.loop_settings import steps_of_epochs
from brim.training.predictions import Prediction
from brim.training.resuming import foreign_best

logger = logging.getLogger(__name__)

# Keys of a run's manifest.json that are relied upon, and what they hold.
_MANIFEST_TYPES = {
    "config_hash": str,
    "config_sha256": str,
    "stages_dir": str,
    "stages": dict,
    "stages_sha256": dict,
    "models": dict,
    "data": dict,
    "criterion": str,
    "versions": dict,
    "num_processes": int,
}
# What the values of its mappings are.
_VALUE_TYPES = {"stages": str, "stages_sha256": str, "data": dict, "models": dict}


@dataclass(frozen=True, slots=True)
class Results:
    """A split of a `results.json`.

    Attributes:
        directory: that holds it.
        scores: by name, in the file's order.
        num_examples: in the split.
        data: SHA-256 of the split's examples, where the file has it.
        facts: all that the file has of the split: the above, further counts, the training's facts.
    """

    directory: Path
    scores: Mapping[str, Score]
    num_examples: int
    data: str | None
    facts: Mapping[str, Any]

    @property
    def decoding(self) -> str | None:
        """How the texts were decoded, in words; None where the file does not say it."""
        kept = self.facts.get("decoding")
        return decoding_in_words(kept) if isinstance(kept, dict) else None

    @property
    def stopped_at(self) -> str | None:
        """`step 11 of 120` where the model's training had not ended; None where it had."""
        return RunDirectory(self.directory).stopped_at(self.facts)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The directory of a run, a stage or an evaluation; nothing is read before it is asked for.

    Every method raises a RunError, on one line and with a remedy, for what is damaged.
    """

    path: Path

    def check(self) -> None:
        """Raise a RunError where there is no run in the directory."""
        if not (self.path / "config.yaml").exists():
            if below := self._run_below():
                raise RunError(f"{self.path}: holds runs and is none; name one, such as {below}")
            raise RunError(f"{self.path}: no run directory (it has no config.yaml); check the path")

    def manifest(self) -> dict[str, Any]:
        """Return the provenance of the run; empty where none has begun."""
        path = self.path / "manifest.json"
        if not path.exists():
            return {}
        try:
            manifest: dict[str, Any] = read_json(path, sealed_with="config_sha256")
            if "config_hash" not in manifest:
                raise RunError(f"{path}: damaged: it is not that of a run")
            for key, kind in _MANIFEST_TYPES.items():
                value = manifest.get(key)
                inner = value.values() if key in _VALUE_TYPES and isinstance(value, dict) else ()
                if key in manifest and not (
                    isinstance(value, kind)
                    and all(isinstance(item, _VALUE_TYPES[key]) for item in inner)
                ):
                    raise RunError(f"{path}: damaged: {key} is {value!r}")
        except TypeError:
            raise RunError(f"{path}: damaged: it is no object; bring it back") from None
        except RunError as error:
            raise RunError(f"{error}; bring it back, or begin the run again elsewhere") from None
        return manifest

    def settings(self) -> dict[str, Any]:
        """Return the settings of `config.yaml` as plain values; empty where there is none."""
        path, text = self.path / "config.yaml", self.settings_text()
        if not path.exists():
            return {}
        try:
            settings = parse(text, lambda line: f"{path}:{line}").data
        except ConfigError as error:
            raise RunError(f"{error}; bring back the run's settings") from None
        if not isinstance(settings, dict) or not isinstance(settings.get("task"), dict):
            raise RunError(f"{path}: damaged: no settings of a run; bring back the run's settings")
        return settings

    def settings_text(self) -> str:
        """Return `config.yaml`, or a stage's `inputs.json`, as it is written; "" without either."""
        path, inputs = self.path / "config.yaml", self.path / "inputs.json"
        if not path.exists() and not (self.path / "manifest.json").exists():
            if not inputs.exists():
                return ""
            read_json(inputs)  # compared with its hash
            path = inputs
        elif (damage := self.settings_damage()) is not None:
            raise RunError(
                f"{path}: {damage}; bring it back, or start again the brim train that began the "
                "run, which writes it again"
            )
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: cannot be read: {error}") from None

    def settings_damage(self) -> str | None:
        """Return what is wrong with `config.yaml`; None where it is as it was written, or old."""
        path = self.path / "config.yaml"
        if not path.is_file():
            return "is missing"
        known = self.manifest().get("config_sha256")
        return None if known in (None, sha256_file(path)) else "is not what the run was begun with"

    def splits(self, split: str = "test") -> dict[str, Any]:
        """Return all that `results.json` holds, by split; empty where there is none.

        Args:
            split: which the remedy of a damaged file is for.
        """
        path = self.path / "results.json"
        if not path.exists():
            return {}
        try:
            splits = read_json(path)
            if not isinstance(splits, dict):
                raise RunError(f"{path}: damaged: not an object of splits")
        except RunError as error:
            raise RunError(f"{error}; remove it, and {self._again(split)}") from None
        return {name: facts for name, facts in splits.items() if isinstance(facts, dict)}

    def tests(self, split: str = "test") -> tuple[str, ...]:
        """Return the splits of the test sets for `test`, where there are several; else `split`."""
        if split != "test":
            return (split,)
        if (self.path / "config.yaml").exists():
            sets = self.settings().get("task", {}).get("test")
            found = [f"test.{name}" for name in sets] if isinstance(sets, dict) else []
        else:
            found = [name for name in self.splits() if name.startswith("test.")]
        return tuple(found) or (split,)

    def find_results(self, split: str) -> Results | None:
        """Return the results of a split; None where there are none yet."""
        try:
            facts = self.splits(split).get(split)
            if not isinstance(facts, dict) or "scores" not in facts:  # another program's file
                return None
            if self.predictions_path(split).exists():
                self.check_predictions(split, facts)
            return Results(
                directory=self.path,
                scores={name: Score(**fields) for name, fields in facts["scores"].items()},
                num_examples=int(facts["num_examples"]),
                data=facts.get("data", {}).get("sha256"),
                facts=facts,
            )
        except BAD_ROW as error:
            path = self.path / "results.json"
            raise RunError(f"{path}: damaged: {error!r}; {self._again(split)}") from None

    def results(self, split: str) -> Results:
        """Return the results of a split; also raises where there are none."""
        results = self.find_results(split)
        if results is None:
            raise self._absent("results", self.path / "results.json", split)
        return results

    def predictions_path(self, split: str) -> Path:
        """Return where the predictions of a split are."""
        return self.path / "predictions" / f"{split}.jsonl"

    def check_predictions(self, split: str, facts: Mapping[str, Any]) -> None:
        """Compare the predictions of a split with their record in its results, if they have one."""
        path, record = self.predictions_path(split), facts.get("predictions")
        damage = None if record is None else file_damage(path, record)
        if damage is not None:
            raise RunError(f"{path}: {damage}, or results.json is of others; {self._again(split)}")

    def predictions(
        self, split: str, *, count: int | None = None, at: Collection[int] | None = None
    ) -> Iterator[Prediction]:
        """Yield what was written for each example of a split, one after the other.

        Args:
            split: of the data.
            count: how many examples `results.json` counts; None to take what is there.
            at: places in the split, from 0, whose rows are wanted; the other lines are not parsed.
                None for all.

        Raises:
            RunError: no such directory, or the file is missing, empty, damaged in a wanted line, or
                has another number of lines than `count`.
        """
        path, rows = self.predictions_path(split), JsonLines(self.predictions_path(split))
        if not path.exists():
            raise self._absent("predictions", path, split)
        self.check_predictions(split, self.splits(split).get(split, {}))
        yield from rows.rows(_prediction, at=at, remedy=self._again(split))
        with path.open("rb") as file:
            number = sum(1 for _ in file)
        if count is not None and number != count:
            raise RunError(
                f"{path}: {number} predictions where results.json counts {count}; "
                f"{self._again(split)}"
            )
        if not number:
            raise RunError(f"{path}: holds no predictions; name a split with examples")

    def log(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a log of the training; none where there is no log.

        They are compared with what the newest checkpoint knows of them; later ones, and those of an
        older version, are taken as they are.

        Args:
            name: `metrics.jsonl`, `timings.jsonl` or `samples.jsonl`.
        """
        damage = self._log_damage(name)
        if damage is not None:
            raise RunError(
                f"{self.path / name}: {damage}; bring it back, or start again the brim train that "
                "wrote it, which makes it again where a checkpoint allows it"
            )
        # A run may be adding a line just now.
        remedy = "resume the run to write it anew"
        return list(JsonLines(self.path / name).rows(_with_step, growing=True, remedy=remedy))

    def _log_damage(self, name: str) -> str | None:
        for checkpoint in checkpoints_in(self.path / "checkpoints").values():
            damage = find_damage(checkpoint, lambda file: file == LOGS)
            try:
                if damage is None:
                    if not (checkpoint / LOGS).exists():  # of an older version
                        return None
                    return beginning_damage(self.path / name, read_json(checkpoint / LOGS)[name])
            except (RunError, KeyError, TypeError) as error:
                damage = f"{LOGS}: {error!r}"
            if checkpoint.exists():  # a run that is under way deletes old ones
                logger.warning(
                    "%s: damaged: %s; %s is compared with the checkpoint before it, if there is "
                    "one",
                    *(checkpoint, damage, self.path / name),
                )
        return None

    def planned_steps(self) -> int | None:
        """Return how many steps the run is to have; None where there is no run or no saying."""
        try:
            manifest = self.manifest()
            trainer = self.settings()["trainer"] if manifest else {}
            if trainer.get("max_steps") is not None:
                return int(trainer["max_steps"])
            examples = manifest["data"]["train"]["num_examples"]
            return steps_of_epochs(trainer["num_epochs"], examples, trainer["rollout_batch_size"])
        except (BrimError, *BAD_ROW):
            return None

    def stopped_at(self, facts: Mapping[str, Any]) -> str | None:
        """Say how far the training of an evaluated model was, if it had not ended.

        Where results of an older version do not say how many steps were planned, the run's settings
        do, if it is a run's directory.

        Args:
            facts: of a split.

        Returns:
            `step 11 of 120`; None where it had ended, there was none, or it is not known.
        """
        step = facts.get("steps")
        if step is None or facts.get("stopped"):
            return None
        planned = facts.get("planned_steps") or self.planned_steps()
        return None if planned is None or step >= planned else f"step {step:,} of {planned:,}"

    def check_best(self) -> None:
        """Raise a RunError unless the run has a best checkpoint, its own and, if not old, sealed.

        What is in it is compared with its manifest where it is loaded.
        """
        best = self.path / "best"
        if not best.exists():
            raise RunError(
                f"{self.path}: has no best checkpoint yet; finish it by brim train --resume must"
            )
        manifest, damage = self.manifest(), None
        if is_sealed(best):
            state = latest_state(self.path / "checkpoints")
            damage = state and foreign_best(best, state)
        elif "sealed" in manifest:
            damage = f"{MANIFEST} is missing"
        if damage:
            raise RunError(
                f"{best}: damaged: {damage}; start again the brim train that wrote it, which makes "
                "it again where it can"
            )

    def _run_below(self) -> Path | None:
        """A run in a directory that is none itself, such as runs/ or a sweep's."""
        if (self.path / "config.yaml").exists():
            return None
        found = [*self.path.glob("*/config.yaml"), *self.path.glob("*/*/config.yaml")]
        return min((path.parent for path in found), default=None)

    def _absent(self, what: str, path: Path, split: str) -> RunError:
        if not self.path.is_dir():
            return RunError(f"{self.path}: no such directory; check the path")
        if not (self.path / "results.json").exists() and (run := self._run_below()):
            return RunError(f"{self.path}: holds runs and is none; name one, such as {run}")
        return RunError(
            f"{path}: no {what} of the {split} split; "
            f"write them by brim evaluate {self.path} --split {split}"
        )

    def _again(self, split: str) -> str:
        return f"write it anew by brim evaluate {self.path} --split {split}"


def curve_of(rows: Iterable[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return (step, value) of each row of a log with a finite number under the key."""
    # A number that is not finite is there as the text "nan" or "inf", which float reads.
    points = [(row["step"], float(row[key])) for row in rows if key in row]
    return [(step, value) for step, value in points if math.isfinite(value)]


def decoding_in_words(decoding: Mapping[str, Any]) -> str:
    """Return the strategy, then all that is set."""
    own = {key: value for key, value in decoding.items() if key != "strategy" and value is not None}
    return ", ".join(
        [str(decoding.get("strategy", "greedy")), *(f"{key} = {own[key]}" for key in own)]
    )


def _prediction(row: Mapping[str, Any]) -> Prediction:
    found = Prediction.from_dict(row)
    # Text, all of it, and fit to be written again; numbers where there are any.
    texts = [found.id, found.prompt, *found.references, *found.texts, found.sampled_text or ""]
    "".join(texts).encode()
    _ = found.num_tokens, found.teacher_return, float(found.sampled_return or 0)
    _ = [sum(regrets) for name in REGRETS for regrets in found.regrets(name) or ()]
    return found


def _with_step(row: dict[str, Any]) -> dict[str, Any]:
    row["step"] += 0
    return row
