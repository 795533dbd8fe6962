"""Settings of tasks are checked without what takes seconds to import."""

import subprocess
import sys


def test_tasks_need_no_torch():
    code = (
        "import sys, brim.tasks\n"
        "brim.tasks.Files(train='x.jsonl', prompt='say {prompt}')\n"
        "brim.tasks.GSM8K()\n"
        "print(*{'torch', 'transformers', 'datasets', 'pyarrow', 'pandas'} & sys.modules.keys())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []
