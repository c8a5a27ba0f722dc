"""One cell by optimum-benchmark, run by the interpreter of an environment that has it. Same orders as bare_loop.py.

Its own definitions: `prefill` is a generation of one token, `decode` the rest of a full generation by its logits processor, its
throughput (tokens - 1) x batch / mean decode seconds. Its process launcher and default settings, but for what the orders fix:
threads, tokens, iterations, warm-ups, no minimum duration, no device isolation (there is no GPU to isolate).
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(order: dict[str, Any]) -> dict[str, float]:
    from optimum_benchmark import Benchmark, BenchmarkConfig, InferenceConfig, ProcessConfig, PyTorchConfig

    config = BenchmarkConfig(
        name="cell",
        launcher=ProcessConfig(device_isolation=False),
        backend=PyTorchConfig(
            model=order["model"], task="text-generation", library="transformers", device="cpu", no_weights=False,
            torch_dtype="float32", intra_op_num_threads=order["threads"], inter_op_num_threads=1,
        ),
        scenario=InferenceConfig(
            iterations=order["iterations"], duration=0, warmup_runs=order["warmup"], latency=True, memory=False,
            input_shapes={"batch_size": order["batch"], "sequence_length": order["sequence"]},
            generate_kwargs={"max_new_tokens": order["tokens"], "min_new_tokens": order["tokens"]},
        ),
    )  # fmt: skip
    report = Benchmark.launch(config)
    return {"ttft_s": report.prefill.latency.mean, "decode_tok_s": report.decode.throughput.value}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
