"""Settings are checked and runs are read without what takes seconds to import."""

import subprocess
import sys

MODELS = {"torch", "transformers"}
# Module -> what neither it nor any module above it in this list imports.
LIGHT = {
    "brim.config.loading": MODELS,
    "brim.metrics": MODELS | {"sacrebleu", "rouge_score", "nltk"},
    "brim.models.settings": MODELS,
    "brim.objectives": MODELS,
    "brim.objectives.settings": MODELS,
    "brim.tasks": MODELS | {"datasets", "pyarrow", "pandas"},
    "brim.runs.directory": MODELS,
    "brim.compare": MODELS,
    "brim.compare.write": MODELS,
    "brim.judge": MODELS,
    "brim.sweep": MODELS,
    "brim.report": MODELS | {"matplotlib", "jinja2"},
}

CODE = f"""
import importlib, sys
for name, heavy in {LIGHT!r}.items():
    importlib.import_module(name)
    if name == "brim.tasks":  # and to check a task's settings
        sys.modules[name].Files(train="x.jsonl", prompt="say {{prompt}}")
        sys.modules[name].GSM8K()
    found = heavy & sys.modules.keys()
    assert not found, f"{{name}} imports {{found}}"
"""


def test_what_is_read_and_checked_needs_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
