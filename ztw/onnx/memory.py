"""Measure the memory that a network needs in ONNX Runtime, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ztw.onnx.form import BOUNDS
from ztw.onnx.runner import OnnxRunner

# Runs without ztw and torch, whose own memory would hide the network's.
CHILD = """
import sys, numpy, onnxruntime
def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
feed = dict(numpy.load(sys.argv[2]))
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again
before = kilobytes("VmRSS")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, feed)
print(1024 * (kilobytes("VmHWM") - before))
"""


def peak_memory(runner: OnnxRunner) -> int | None:
    """Return the bytes that loading the file and computing one sample through all blocks add to a process at the peak.

    None where the system does not tell (it needs Linux), or where the sample cannot be computed.
    """
    spec = runner.form.inputs
    feed = {item.name: np.zeros((1, *(side or 1 for side in item.shape)), item.dtype) for item in spec.inputs}
    if runner.exits > 1 and runner.rule is not None and not runner.rule.single:
        feed[BOUNDS] = np.full(runner.exits - 1, np.inf, np.float32)  # no sample leaves early
    with tempfile.TemporaryDirectory() as folder:
        file, given = Path(folder, "network.onnx"), Path(folder, "feed.npz")
        file.write_bytes(runner.content)
        np.savez(given, allow_pickle=False, **feed)
        done = subprocess.run(
            [sys.executable, "-I", "-c", CHILD, str(file), str(given)],
            capture_output=True,
            text=True,
            check=False,
        )
    return int(done.stdout) if done.returncode == 0 else None
