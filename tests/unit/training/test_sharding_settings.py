import json

import pytest
from pydantic import ValidationError

from brim.errors import RunError
from brim.training.checkpoints import check_processes
from brim.training.settings import RunConfig

BASE = {
    "task": {"name": "wordproblems"},
    "teacher": {"path": "big"},
    "student": {"path": "small"},
    "trainer": {"max_steps": 1},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"path": "big", "sharding": "fsdp", "device": "cuda:1"}}, "device"),
        (
            {
                "teacher": {
                    "path": "big",
                    "sharding": "offload",
                    "quantization": {"backend": "torchao", "bits": 8},
                }
            },
            "quantized weights",
        ),
        ({"teacher": {"path": "big", "sharding": "fsdp"}, "student": {"keep_layers": 2}}, "layers"),
        (
            {"student": {"path": "s", "lora": {}}, "trainer": {"max_steps": 1, "sharding": "fsdp"}},
            "adapters",
        ),
        (
            {
                "optim": {"optimizer": "adamw_8bit"},
                "trainer": {"max_steps": 1, "sharding": "fsdp"},
            },
            "moments",
        ),
        (
            {
                "decoding": {"engine": "vllm"},
                "trainer": {"max_steps": 1, "sharding": "fsdp"},
            },
            "vllm",
        ),
        ({"trainer": {"max_steps": 1, "compile": True, "sharding": "fsdp"}}, "compile"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    RunConfig.model_validate_json(json.dumps(BASE))
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate_json(json.dumps(BASE | changes))


def test_another_number_of_processes(tmp_path):
    check_processes(tmp_path, 2, 2)
    check_processes(tmp_path, None, 2)  # of a run before the number was written down
    with pytest.raises(RunError, match="begun with 2 processes.* with 4.*--other-processes"):
        check_processes(tmp_path, 2, 4)
