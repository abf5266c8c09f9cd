"""Files of logits come back as they were written, in every format; what does not fit is refused in one line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.numpy import save_file

import ztw
from ztw.evaluation.prediction_formats import FORMATS

COST, BASE = [4e6, 7e6, 1.1e7], 1e7
RNG = np.random.default_rng(0)
SIZES = {"validation": 20, "test": 30, "train": 12}
SPLITS: dict[str, Any] = {
    split: (RNG.normal(size=(3, size, 4)).astype(np.float32), RNG.integers(4, size=size))
    for split, size in SIZES.items()
}
ARRAYS = {
    f"{split}_{part}": pair[place]
    for split, pair in SPLITS.items()
    for place, part in enumerate(("logits", "labels"))
}
TIMES = (
    ztw.ExitTimes([0.5, 1.0, 1.75], backbone=1.5, runtime="jax", device="a TPU"),
    ztw.ExitTimes(np.array([1.0, 2.0, 3.0]).tolist(), 2.5, "onnxruntime", "a CPU", threads=2),
)


class Like:
    """An array of another framework: NumPy can read it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


def written(path, **changes: Any) -> ztw.Predictions:
    given = {**SPLITS, "cost": COST, "base_cost": BASE, **changes}
    ztw.write_predictions(path, **given)
    return ztw.load_predictions(path)


def assert_same(found: ztw.Predictions, tolerance: float = 0) -> None:
    for split, (logits, labels) in SPLITS.items():
        pair = found.of(split)
        assert pair is not None
        assert (pair[0].dtype, pair[1].dtype) == (torch.float32, torch.int64)
        torch.testing.assert_close(pair[0], torch.from_numpy(logits), atol=0, rtol=tolerance)
        assert pair[1].tolist() == labels.tolist()
    assert (found.cost.tolist(), found.base_cost) == (COST, BASE)


@pytest.mark.parametrize("suffix", FORMATS)
def test_they_come_back_from_every_format(tmp_path, suffix):
    found = written(tmp_path / f"new/mine{suffix}", times=TIMES, origin="a paper's authors")
    assert_same(found)
    assert (found.times, found.origin) == (TIMES, "a paper's authors")
    assert_same(written(tmp_path / f"half{suffix}", half=True), tolerance=2**-11)
    plain = written(tmp_path / f"plain{suffix}", train=None)
    assert (plain.train, plain.times, plain.origin) == (None, (), "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"half{suffix}", "new", f"plain{suffix}"]


@pytest.mark.parametrize(
    "wrap", [torch.from_numpy, Like, np.ndarray.tolist, lambda a: a.astype(a.dtype.kind + "8")]
)
def test_arrays_of_any_framework_are_taken(tmp_path, wrap):
    given = {split: (wrap(logits), wrap(labels)) for split, (logits, labels) in SPLITS.items()}
    assert_same(written(tmp_path / "a.npz", **given, cost=wrap(np.array(COST)), times=TIMES[0]), 1e-7)


def test_files_that_other_programs_write_are_read(tmp_path):
    """The layouts of the manual, written without ztw."""
    save_file(ARRAYS, tmp_path / "a.safetensors", metadata={"cost": json.dumps(COST), "base_cost": str(BASE)})
    save_file({**ARRAYS, "cost": np.array(COST), "base_cost": np.array(BASE)}, tmp_path / "b.safetensors")
    np.savez_compressed(tmp_path / "c.npz", **ARRAYS, cost=COST, base_cost=BASE, note="ignored")
    rows = [
        {"split": split, "label": label, **{f"exit_{k + 1}": logits[k, n] for k in range(3)}}
        for split, (logits, labels) in SPLITS.items()
        for n, label in enumerate(labels)
    ]
    table = pa.Table.from_pandas(pd.DataFrame(rows))
    parquet.write_table(
        table.replace_schema_metadata({"cost": json.dumps(COST), "base_cost": str(BASE)}),
        tmp_path / "d.parquet",
    )
    for path in sorted(tmp_path.iterdir()):
        assert_same(ztw.load_predictions(str(path)))


def changed(split: str, logits: Any = None, labels: Any = None) -> dict[str, Any]:
    pair = SPLITS[split]
    return {split: (pair[0] if logits is None else logits, pair[1] if labels is None else labels)}


def with_nan() -> np.ndarray:
    logits = SPLITS["test"][0].copy()
    logits[1, 2, 3] = np.nan
    return logits


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        changed("test", logits=SPLITS["test"][0][0]),
        r"test logits: shape \(30, 4\), must be \(exits, samples, class",
    ),
    (changed("test", labels=SPLITS["test"][1][1:]), r"test labels: shape \(29,\), must be \(30,\)"),
    (changed("test", logits=with_nan()), "test logits: 1 values are NaN, must be finite"),
    (changed("test", logits=SPLITS["test"][0].astype(float) * 1e39), r"test logits: .*inf, must be finite"),
    (
        changed("test", logits=SPLITS["test"][0].astype(int)),
        "test logits: torch.int64, must be floating-point",
    ),
    (changed("validation", labels=np.full(20, 4)), r"validation labels: must lie in 0\.\.3, got 4\.\.4"),
    (changed("validation", labels=np.full(20, -1)), r"validation labels: must lie in 0\.\.3, got -1"),
    (changed("validation", labels=np.zeros(20)), "validation labels: torch.float64, must be integers"),
    (
        changed("test", logits=np.zeros((3, 30, 5))),
        "train logits: 4 classes, test logits have 5",
    ),
    (changed("test", logits=np.zeros((2, 30, 4))), "train logits: 3 exits, test logits have 2"),
    (changed("test", logits="logits"), "test logits: str, must be a tensor or an array of numbers"),
    ({"test": SPLITS["test"][0]}, r"test: ndarray, must be \(logits, labels\)"),
    ({"cost": [4e6, 4e6, 1.1e7]}, "cost: must be positive and strictly increasing, got"),
    ({"cost": [4e6, 7e6]}, r"cost: shape \(2,\), must be \(3,\)"),
    ({"base_cost": 1.0}, "base_cost 1.0: must be the MACs of one sample .* not a share or a percentage"),
    ({"base_cost": "many"}, "base_cost 'many': must be"),
    ({"times": ztw.ExitTimes([1, 2], 2, "jax", "x")}, r"times \(jax\): 2 numbers, the logits have 3 exits"),
    ({"times": [TIMES[0], TIMES[0]]}, "times: jax, jax: each runtime must be given once"),
    (
        {"half": True, **changed("test", logits=SPLITS["test"][0] * 1e6)},
        "test logits: beyond half precision's range",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_does_not_fit_is_not_written(tmp_path, change, message):
    with pytest.raises(ztw.ZtwError, match=message) as caught:
        written(tmp_path / "a.npz", **change)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("exits", "backbone"), [([0, 1], 1), ([1, np.nan], 1), ([[1, 2]], 1), ([1, 2], 0), ([1, 2], None)]
)
def test_times_that_cannot_be_meant(exits, backbone):
    with pytest.raises(ztw.ZtwError, match=r"times: .*must be"):
        ztw.ExitTimes(exits, backbone, "jax", "x")


@pytest.mark.parametrize("change", [{"runtime": 1}, {"device": ""}, {"precision": "a\nb"}, {"threads": 0.5}])
def test_what_no_measurement_is_called(change):
    (name,) = change
    with pytest.raises(ztw.ZtwError, match=f"times: {name} .*: must be a"):
        ztw.ExitTimes([1, 2], 2, **{"runtime": "jax", "device": "x", **change})


def test_another_suffix_is_refused(tmp_path):
    for path in ("a.h5", "a"):
        with pytest.raises(ztw.ZtwError, match=r"must end in \.safetensors, \.npz, \.parquet"):
            written(tmp_path / path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_that_cannot_be_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(ztw.ZtwError, match=f"a{suffix}: no such file"):
        ztw.load_predictions(path)
    for content in (b"", b"garbage" * 50, b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ztw.ZtwError, match=rf"a{suffix}: is no {suffix[1:]} file of logits \(") as caught:
            ztw.load_predictions(path)
        assert "\n" not in str(caught.value)


def stored(**changes: Any) -> dict[str, Any]:
    found = {**ARRAYS, "cost": COST, "base_cost": BASE, **changes}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_logits": None}, "has no test_logits; is it a file of logits"),
        ({"train_labels": None}, "has no train_labels; is it a file of logits"),
        ({"validation_labels": None}, "has no validation_labels"),
        ({"cost": None}, "has no cost"),
        ({"cost": [3, 2, 1]}, "cost: must be positive and strictly increasing"),
        ({"test_logits": with_nan()}, "test logits: 1 values are NaN"),
        ({"times": '{"runtime": 1}'}, "cost, base_cost or times cannot be read"),
        ({"times": "fast"}, "cost, base_cost or times cannot be read"),
        (
            {"test_labels": np.array([{"a": 1}] * 30, dtype=object)},
            "is no npz file of logits .*Object arrays",
        ),
    ],
)
def test_files_whose_content_does_not_fit(tmp_path, change, message):
    np.savez(tmp_path / "a.npz", **stored(**change))
    with pytest.raises(ztw.ZtwError, match=rf"a\.npz: {message}") as caught:
        ztw.load_predictions(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0], "exit_1": [[1.0]]}, "has no column split"),
        ({"split": ["test"], "label": [0]}, "must have columns exit_1, exit_2"),
        ({"split": ["test"], "label": [0], "exit_2": [[1.0]]}, "must have columns exit_1, exit_2"),
        (
            {"split": ["test"] * 2, "label": [0, 0], "exit_1": [[1.0], [1.0, 2.0]]},
            "exit_1: every row must have one",
        ),
        (
            {"split": ["test"], "label": [0], "exit_1": [None]},
            "exit_1: every row must have one number per class",
        ),
        (
            {"split": ["test"], "label": [0], "exit_1": [1.0]},
            "exit_1: every row must have one number per class",
        ),
        ({"split": ["test"], "label": [0], "exit_1": [["a"]]}, "is no parquet file of logits"),
        ({"split": ["test"], "label": [0], "exit_1": [[1.0]], "exit_2": [[1.0, 2.0]]}, "different lengths"),
        ({"split": ["val"], "label": [0], "exit_1": [[1.0]]}, "has no validation_logits"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ztw.ZtwError, match=rf"a\.parquet: .*{message}") as caught:
        ztw.load_predictions(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)
