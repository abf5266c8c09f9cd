"""Test the choice of device and precision, and kept memory."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import subprocess
import sys

import pytest
import torch

import ztw
from ztw.device import (
    ON_CPU,
    device_name,
    keep_freed_memory,
    make_reproducible,
    pick_device,
    resolve_precision,
)


def test_precision_and_device():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) in ("bf16", "fp32")
    with pytest.raises(ztw.ZtwError, match="precision 'fp16': must be one of auto, bf16, fp32"):
        resolve_precision("fp16", cpu)
    with pytest.raises(ztw.ZtwError, match="device 'gpu9': not available here"):
        pick_device("gpu9")


@pytest.mark.parametrize(
    ("known", "precision"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "fp32"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": False}, "fp32"),
        ({"avx512_bf16": True}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_only_where_that_is_faster(monkeypatch, known, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert resolve_precision("auto", torch.device("cpu")) == precision


def test_make_reproducible(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    try:
        make_reproducible(2)
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled(), (
            "where there is none, it computes all the same"
        )
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "what a user has set stays"
        filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        assert not filled, "nothing reads it: time for nothing"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def test_a_record_names_the_cpu_and_the_machine(monkeypatch):
    found = ON_CPU.describe()
    assert found == {
        "device": device_name(torch.device("cpu")),
        "precision": "fp32",
        "threads": 1,
        "host": socket.gethostname(),
    }
    assert found["device"] not in ("", "cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert ON_CPU.describe()["device"] == platform.machine()


FAULTS = """
import ctypes, resource, sys
from ztw.device import keep_freed_memory
if sys.argv[1] == "keep": assert keep_freed_memory()
import torch
def use():  # two activations of 64 MiB, as a layer has them
    a = torch.ones(2**24); a + 1
for _ in range(24): use()  # until every activation has found its place
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_kept_memory_causes_few_page_faults():
    def faults(mode: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", FAULTS, mode], text=True))

    pages = 4 * 2 * 2**26 // 4096
    if faults("give back") < pages / 2:
        pytest.skip("this system's allocator keeps freed memory, or its page faults are not counted")
    assert faults("keep") < pages / 4, "one activation that moves late is pages / 8"


def test_another_system_and_another_c_library_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not keep_freed_memory()
