"""Floors on a bigger machine, computed from the roofline: nothing here is measured.

    python -m benchmarks.projection [--bandwidth 3.0e12] [--matmul 798e12]

The rates default to what one H100 reaches in copies and in bf16 matrix products. Floors are what
the weights, the cache and the model's FLOPs cost at those rates; real times lie above them.
"""

from __future__ import annotations

import argparse

from wuneng.bench import roofline
from wuneng.bench.architectures import choose
from wuneng.bench.machine import Rates
from wuneng.bench.request import make_request
from wuneng.model.cache_bytes import cache_bytes

CONTEXTS = (8 * 1024, 32 * 1024, 128 * 1024)
BF16 = 2


def main() -> None:
    """Print a Markdown table of a preset's floors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bandwidth", type=float, default=3.0e12, help="bytes per second")
    parser.add_argument("--matmul", type=float, default=798e12, help="FLOPs per second")
    parser.add_argument("--preset", default="7b")
    parser.add_argument("--gpus", type=int, default=8)
    options = parser.parse_args()
    rates = Rates(options.bandwidth, options.matmul)
    comparison = choose(make_request(preset=options.preset))
    print(
        f"| {options.preset} | context | cache per sequence | decode, batch 1 | decode, batch 16 "
        f"| prefill | training tokens/s, {options.gpus} GPUs |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for context in CONTEXTS:
        for model in comparison.architectures:
            config, parameters = model.config, model.parameters
            cache = sum(cache_bytes(config, 1, context, BF16).values())
            steps = [
                roofline.decode(config, parameters, batch, context, BF16).floor_seconds(rates)
                for batch in (1, 16)
            ]
            first = roofline.prefill(config, parameters, 1, context, BF16).floor_seconds(rates)
            flops = roofline.training_step(config, parameters, 1, context).flops
            tokens = options.gpus * context * options.matmul / flops
            print(
                f"| {model.arm} | {context // 1024}k | {cache / 2**30:.2f} GiB "
                f"| {1000 * steps[0]:.1f} ms | {1000 * steps[1]:.1f} ms | {first:.2f} s "
                f"| {tokens:,.0f} |"
            )


if __name__ == "__main__":
    main()
