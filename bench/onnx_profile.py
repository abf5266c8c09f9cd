"""Profile early exits in ONNX Runtime: time by kind of operation, beside the time of the whole backbone.

usage: python bench/onnx_profile.py NAME [BATCH [THREADS [RUNS]]]     NAME: a key of test_onnx.NETWORKS; prints a table

No sample leaves early, so that all heads and thresholds are included. `between operations` is the time outside of
kernels: for copies of samples from exit to exit (the nested `If`s), the session and Python.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
from test_onnx import prepared

import ztw
from ztw.onnx.form import BOUNDS, IMAGES
from ztw.onnx.write import float32_below

CARRIERS = ("If",)  # left out, because its time includes other operations


def session_of(
    content: bytes, threads: int, optimise: bool, profile: str | None
) -> onnxruntime.InferenceSession:
    """Make a session like that of `OnnxRunner`."""
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def spent(
    content: bytes, feed: dict[str, np.ndarray], threads: int, optimise: bool, runs: int
) -> dict[str, float]:
    """Return kind of operation -> ms of one run; "between operations" is the rest of an unprofiled run."""
    plain = session_of(content, threads, optimise, None)
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        plain.run(None, feed)
        seconds.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        profiled = session_of(content, threads, optimise, str(Path(folder, "profile")))
        for _ in range(runs):
            profiled.run(None, feed)
        events = json.loads(Path(profiled.end_profiling()).read_text())
    kinds: Counter[str] = Counter()
    for event in events:
        name = event.get("args", {}).get("op_name")
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and name not in CARRIERS:
            kinds[name] += event["dur"] / runs / 1000
    total = 1000 * sorted(seconds)[runs // 2]
    return {**kinds, "between operations": total - sum(kinds.values()), "all": total}


def main(name: str, batch: int = 1, threads: int = 1, runs: int = 100) -> None:
    """Print the table of a network in test_onnx.NETWORKS."""
    network, images, exits, alone = prepared(name)
    array = images[:batch].numpy()
    runner = ztw.OnnxRunner(exits, threads, cache=False)
    bounds = float32_below(ztw.MaxSoftmax(2.0).bounds(network.exits))
    whole = spent(alone.read_bytes(), {IMAGES: array}, threads, True, runs)
    early = spent(
        runner._fast("single" if batch == 1 else "batched"),
        {IMAGES: array, BOUNDS: bounds},
        threads,
        False,
        runs,
    )
    print(f"{name}, batch {batch}, {threads} threads, nobody leaves\n")
    print("| operation | whole backbone (ms) | with all exits (ms) |\n|---|---:|---:|")
    for kind in sorted(early, key=lambda kind: -early[kind]):
        print(f"| {kind} | {whole.get(kind, 0):.3f} | {early[kind]:.3f} |")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
