"""Cost of `brim.block_returns` as a multiple of a plain reverse cumulative sum over time.

    python benchmarks/returns.py

The aim is under 3 at 64 completions of up to 4,096 tokens and the paper's K of 2 to 16. A K that
makes a large part of each completion its tail costs more: the tail is summed twice. Small tensors
cost what calling torch's operations costs, a fraction of a millisecond. Each figure is the median
of many calls, the two functions taking turns, so that a busy machine slows both.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from brim.returns import block_returns


def plain_reverse_cumsum(rewards: Tensor) -> Tensor:
    return rewards.flip(1).cumsum(1).flip(1)


def milliseconds(function: Callable[[], Tensor], device: str) -> float:
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.accelerator.synchronize()
    return 1e3 * (time.perf_counter() - start)


def compare(
    num_rows: int, num_steps: int, k: int, dtype: torch.dtype, device: str, num_calls: int
) -> tuple[float, float]:
    """Median milliseconds of the plain sum, in the precision of our result, and of ours."""
    generator = torch.Generator().manual_seed(0)
    best = torch.randn(num_rows, num_steps, generator=generator).to(device, dtype)
    taken = best - torch.rand(num_rows, num_steps, generator=generator).to(device, dtype)
    lengths = torch.randint(num_steps // 4, num_steps + 1, (num_rows, 1), generator=generator)
    mask = (torch.arange(num_steps) < lengths).to(device)
    rewards = block_returns(taken, best, mask, k=k)

    times = []
    for _ in range(num_calls):
        plain = milliseconds(lambda: plain_reverse_cumsum(rewards), device)
        ours = milliseconds(lambda: block_returns(taken, best, mask, k=k), device)
        times.append((plain, ours))
    plain, ours = map(statistics.median, zip(*times, strict=True))
    return plain, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--calls", type=int, default=100)
    args = parser.parse_args()

    # Freeing a large block makes glibc keep memory, as it does in any process that trains;
    # else what is measured is the kernel mapping pages.
    torch.empty(31 * 2**18)

    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} thread(s)")
    print("rows x steps  dtype         K   plain ms    ours ms  ratio")
    for num_rows, num_steps in ((64, 4096), (64, 256)):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for k in (1, 2, 4, 8, 16, 64, 1024):
                size = (num_rows, num_steps)
                plain, ours = compare(*size, k, dtype, args.device, args.calls)
                print(
                    f"{num_rows:>4} x {num_steps:<5} {str(dtype).removeprefix('torch.'):<8} "
                    f"{k:>5} {plain:>10.3f} {ours:>10.3f} {ours / plain:>6.2f}"
                )


if __name__ == "__main__":
    main()
