"""Files of logits, computed by any framework: written, read and checked. A study can start from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ztw.errors import ZtwError, is_number
from ztw.evaluation.prediction_formats import SPLITS, Arrays, Texts, format_of, read_file, write_file
from ztw.exits.logits import check_logits
from ztw.tensors import as_tensor

LEAST_MACS = 10  # of a network; less is a share or a percentage
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ExitTimes:
    """Measured times of one sample alone (batch size 1) in one runtime.

    Args:
        exits: K times in ms, each of a sample that leaves at this exit.
        backbone: time in ms of the backbone without exits.
        runtime: name of the runtime, for example "onnxruntime".
        device: name of the processor or accelerator.
        precision: of the computation.
        threads: number of threads.

    Raises:
        ZtwError: for times that are not positive, and for names that are no text.

    Example:
        >>> import ztw
        >>> ztw.ExitTimes([0.5, 1.25], backbone=1.0, runtime="jax", device="TPU v5e").exits
        (0.5, 1.25)
    """

    exits: Sequence[float]
    backbone: float
    runtime: str
    device: str
    precision: str = "fp32"
    threads: int = 1

    def __post_init__(self) -> None:
        exits, alone = (as_tensor(of, "times").double() for of in (self.exits, self.backbone))
        if exits.dim() != 1 or alone.dim() or not _all_positive(torch.cat([exits, alone[None]])):
            raise ZtwError(
                f"times: {self.exits!r}, backbone {self.backbone!r}: must be ms above 0, one per exit"
            )
        for name in ("runtime", "device", "precision"):
            if not isinstance(value := getattr(self, name), str) or not value.isprintable() or not value:
                raise ZtwError(f"times: {name} {value!r}: must be a text of one line")
        if not isinstance(self.threads, int) or self.threads < 1:
            raise ZtwError(f"times: threads {self.threads!r}: must be a whole number of at least 1")
        object.__setattr__(self, "exits", tuple(exits.tolist()))
        object.__setattr__(self, "backbone", float(alone))


@dataclass(frozen=True, repr=False)
class Predictions:
    """Logits of a network's exits on samples that nothing was trained on.

    Args:
        validation: (logits float32 (K, N, C), labels int64 (N,)), to choose thresholds and to fit on.
        test: the same of the test samples, to report.
        cost: (K,) float64, cumulative cost of the exits, in MACs.
        base_cost: MACs of the backbone alone.
        train: logits and labels of training samples; None = the file has none.
        times: measured times of the exits, if the file has any.
        origin: where the logits come from, in words.
    """

    validation: Pair
    test: Pair
    cost: Tensor
    base_cost: float
    train: Pair | None = None
    times: tuple[ExitTimes, ...] = ()
    origin: str = ""

    def __repr__(self) -> str:
        exits, samples, num_classes = self.test[0].shape
        return (
            f"Predictions({exits} exits, {num_classes} classes, {len(self.validation[1])} validation and {samples} test"
            f" samples; exits cost {self.cost[0] / self.base_cost:.0%} to {self.cost[-1] / self.base_cost:.0%} of the"
            " backbone)"
        )

    def of(self, split: str) -> Pair | None:
        """Return logits and labels of a split: "train", "validation" or "test"."""
        return getattr(self, split) if split in SPLITS else None


def write_predictions(
    path: Path | str,
    validation: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    cost: Any,
    base_cost: float,
    train: tuple[Any, Any] | None = None,
    times: ExitTimes | Iterable[ExitTimes] = (),
    origin: str = "",
    half: bool = False,
) -> None:
    """Write the logits of a network's exits to a file, for a study from logits or for `ztw.load_predictions`.

    Arrays may be tensors, NumPy arrays, nested lists, or anything with `__array__` (JAX, TensorFlow).

    Args:
        path: ends in .safetensors, .npz or .parquet; section "logits" of config/README.md describes the layouts.
        validation: (logits (K, N, C) of K exits, the last one the complete network; labels (N,), integers in 0..C-1).
        test: the same of the test samples.
        cost: (K,) MACs of a sample that leaves at each exit, previous exits included; strictly increasing.
        base_cost: MACs of the network without exits.
        train: as `validation`, of training samples; only ensembles with `fit_on: train` need them.
        times: measured times of the exits, one per runtime.
        origin: where the logits come from, in words; stands in the results.
        half: store logits in float16: half the size; accuracies can differ in the fourth digit.

    Raises:
        ZtwError: for arrays that do not fit together, NaN, labels out of range, or costs that do not increase.

    Example:
        >>> import numpy as np, ztw
        >>> rng = np.random.default_rng(0)
        >>> splits = [(rng.normal(size=(2, n, 3)), rng.integers(3, size=n)) for n in (100, 200)]
        >>> ztw.write_predictions("mine.npz", *splits, cost=[4e6, 1e7], base_cost=9e6)
        >>> ztw.load_predictions("mine.npz")
        Predictions(2 exits, 3 classes, 100 validation and 200 test samples; exits cost 44% to 111% of the backbone)
    """
    place = Path(path)
    format_of(place)
    given = {"train": train, "validation": validation, "test": test}
    found = _checked(
        {split: pair for split, pair in given.items() if pair is not None},
        cost,
        base_cost,
        (times,) if isinstance(times, ExitTimes) else tuple(times),
        origin,
    )
    arrays: Arrays = {}
    for split in SPLITS:
        if pair := found.of(split):
            arrays[f"{split}_logits"] = _halved(pair[0], split) if half else pair[0]
            arrays[f"{split}_labels"] = pair[1].to(_smallest(pair[0].shape[-1] - 1))
    texts: Texts = {"cost": json.dumps(found.cost.tolist()), "base_cost": json.dumps(found.base_cost)}
    if found.times:
        texts["times"] = json.dumps([asdict(one) for one in found.times])
    if origin:
        texts["origin"] = origin
    write_file(place, arrays, texts)


def read_prediction_file(path: Path | str) -> Predictions:
    """Read a file of logits.

    Raises:
        ZtwError: if the file is missing or of another kind, or if `write_predictions` would refuse its content.
    """
    arrays, texts = read_file(Path(path))
    splits: dict[str, tuple[Any, Any]] = {}
    for split in SPLITS:
        names = [f"{split}_{part}" for part in ("logits", "labels")]
        if missing := [name for name in names if name not in arrays]:
            if split == "train" and len(missing) == 2:
                continue
            raise ZtwError(f"{path}: has no {missing[0]}; is it a file of logits?")
        splits[split] = (arrays[names[0]], arrays[names[1]])
    if missing := [name for name in ("cost", "base_cost") if name not in texts]:
        raise ZtwError(f"{path}: has no {missing[0]}; is it a file of logits?")
    try:
        cost, base_cost = (json.loads(texts[name]) for name in ("cost", "base_cost"))
        times = tuple(ExitTimes(**one) for one in json.loads(texts.get("times", "[]")))
        return _checked(splits, cost, base_cost, times, texts.get("origin", ""))
    except ZtwError as error:
        raise ZtwError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ZtwError(f"{path}: cost, base_cost or times cannot be read ({error})") from error


def _checked(
    splits: Mapping[str, tuple[Any, Any]],
    cost: Any,
    base_cost: Any,
    times: Sequence[ExitTimes],
    origin: str,
) -> Predictions:
    """Check that everything fits together; see `write_predictions`."""
    pairs = {split: _pair(split, given) for split, given in splits.items()}
    _check_alike(pairs)
    *_, costs = check_logits(pairs["test"][0], cost=cost)
    if not is_number(base_cost) or not LEAST_MACS <= base_cost < math.inf:
        raise ZtwError(
            f"base_cost {base_cost!r}: must be the MACs of one sample in the network without exits, not a share or a"
            " percentage"
        )
    _check_times(times, len(costs))
    return Predictions(
        pairs["validation"],
        pairs["test"],
        costs,
        float(base_cost),
        train=pairs.get("train"),
        times=tuple(times),
        origin=str(origin),
    )


def _pair(split: str, given: Any) -> Pair:
    """Return logits in float32 and labels in int64, on the CPU."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ZtwError(f"{split}: {type(given).__name__}, must be (logits, labels)")
    try:
        logits, labels, _ = check_logits(*given)
        logits = logits.detach().float().cpu()
        check_logits(logits)  # float64 may be beyond float32's range
    except ZtwError as error:
        raise ZtwError(f"{split} {error}") from error
    return logits, labels.cpu()


def _check_alike(pairs: Mapping[str, Pair]) -> None:
    """Check that all splits have the same exits and classes."""
    expected = pairs["test"][0].shape
    for split, (logits, _) in pairs.items():
        for axis, what in ((0, "exits"), (2, "classes")):
            if logits.shape[axis] != expected[axis]:
                raise ZtwError(
                    f"{split} logits: {logits.shape[axis]} {what}, test logits have {expected[axis]}"
                )


def _check_times(times: Sequence[ExitTimes], exits: int) -> None:
    for one in times:
        if len(one.exits) != exits:
            raise ZtwError(f"times ({one.runtime}): {len(one.exits)} numbers, the logits have {exits} exits")
    runtimes = [one.runtime for one in times]
    if len(set(runtimes)) < len(runtimes):
        raise ZtwError(f"times: {', '.join(runtimes)}: each runtime must be given once")


def _all_positive(values: Tensor) -> bool:
    return bool(((values > 0) & values.isfinite()).all())


def _halved(logits: Tensor, split: str) -> Tensor:
    halves = logits.half()
    if not halves.isfinite().all():
        largest = float(logits.abs().max())
        raise ZtwError(f"{split} logits: beyond half precision's range, {largest:.3g}; leave half=True out")
    return halves


def _smallest(largest: int) -> torch.dtype:
    """Return the smallest type for labels up to `largest`."""
    return next(kind for kind in (torch.uint8, torch.int16, torch.int32) if largest <= torch.iinfo(kind).max)
