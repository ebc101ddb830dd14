"""What `advise` says of traffic, for models without a public trace: on synthetic ones.

    python -m benchmarks.traffic_advice deepseek-r1 h200 --gpus 64 --nodes 8 [--seed 1]

The trace is that of `benchmarks.synthetic_traces`, calibrated to real traces and to no advice; its
windows are batches of 1,024 tokens, odd ones planned and even ones served. Minutes for a large
model.
"""

from __future__ import annotations

import argparse
import warnings

import craftopt as co
from benchmarks.synthetic_traces import synthetic_trace
from craftopt.serving import find_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("gpu")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore", co.CraftoptWarning)
    model = find_model(options.model)
    trace = synthetic_trace(model.moe_layers, model.experts, model.top_k, options.seed)
    advice = co.advise(
        trace.batches(1024),
        model,
        options.gpu,
        options.gpus,
        options.nodes,
        coactivation=trace,
        workers=1,
        progress=lambda step: print(f"... {step}", flush=True),
    )
    print(advice.recommended.name, f"{advice.ratio_to_eplb:.3f} x EPLB's default")
    for reason in advice.reasons:
        print("-", reason)


if __name__ == "__main__":
    main()
