import math

import pytest
import torch

from brim.advantages import mean_baseline


def test_mean_baseline_weighs_tokens_not_rows():
    returns = torch.tensor([[1.0, 2.0, 3.0], [-10.0, math.nan, math.nan]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert mean_baseline(returns, mask).item() == -1


def test_mean_baseline_refuses_other_shapes():
    with pytest.raises(ValueError, match="returns must have the mask's shape"):
        mean_baseline(torch.zeros(2), torch.ones(2, 3, dtype=torch.bool))
