"""Take models of many kinds with ztw and with earlyon, and print what each does with them.

The table is in docs/explanation/other-libraries.md.

usage: python bench/models.py [NAME ...]     NAME: a key of CASES in tests/any_models.py; default: all

Each model gets exits after the same modules. earlyon's custom_ee takes modules that are called with one tensor and
return a tensor of logits. Where it refuses the model as it is, the model is tried again in a module that its user would
write: it takes one tensor and returns `.logits`, and feature_extractors takes the first of several values.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import earlyon
from any_models import CASES, CLASSES, Case, batch_like, build, one_of
from earlyon.models import custom_ee
from earlyon.onnx import export_all_exits_to_onnx
from earlyon.training.joint_trainer import joint_train_backbone_and_exits
from earlyon.training.two_stage_trainer import stage2_train_exits
from earlyon.utils import load_wrapper, save_wrapper

import ztw
from ztw.evaluation.exit_times import leaving_at

SAMPLES, REPEATS = 16, 40
Cells = dict[str, str]


class AsEarlyonCallsIt(nn.Module):
    """What a user writes around a model for earlyon: one tensor in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output = self.model(x)
        return getattr(output, "logits", output)


def first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def attempt(cells: Cells, name: str, step: Callable[[], Any]) -> Any:
    """Run a step and write down "yes", what it returns if that is a text, or its error."""
    try:
        found = step()
        cells[name] = found if isinstance(found, str) else "yes"
        return found
    except Exception as error:
        text = " ".join(str(error).split())
        cells[name] = f"{type(error).__name__}: {text[:160]}"
        return None


def fastest(calls: list[Callable[[], Any]]) -> list[float]:
    """Return the time of each call in ms, the fastest of many; the calls take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(REPEATS):
        for number, call in enumerate(calls):
            started = time.perf_counter()
            call()
            best[number] = min(best[number], 1e3 * (time.perf_counter() - started))
    return best


def share(early: float, whole: float) -> str:
    return f"{early:.2f} of {whole:.2f} ms = {100 * early / whole:.0f} %"


def ours(name: str, case: Case, folder: Path) -> Cells:
    """Take a model with ztw: cut, trained, saved, loaded without its code, exported, timed."""
    cells, model = Cells(), build(name)
    batch, labels = batch_like(case.example, SAMPLES), torch.arange(SAMPLES) % CLASSES

    def network(connection: str) -> ztw.EarlyExitNetwork:
        backbone = ztw.as_backbone(model, example=case.example, at=case.at)
        return ztw.build_network(backbone, connection, head="pool", progress=False).eval()

    cut = attempt(cells, "wraps", lambda: network("independent"))
    if cut is None:
        return cells
    attempt(
        cells, "trains heads", lambda: ztw.train_exits(cut, (batch, labels), 1, batch_size=8, progress=False)
    )
    attempt(
        cells,
        "trains jointly",
        lambda: ztw.train_exits(network("independent"), (batch, labels), 1, regime="joint", progress=False),
    )
    notes: list[Any] = []

    def kept() -> str:
        ztw.save(cut, folder / "network", "max_softmax 0.5", progress=notes.append)
        if notes:
            return str(notes[0])
        ztw.load(folder / "network")
        return "yes"

    attempt(cells, "loads without the model's code", kept)
    rules = [leaving_at(exit, cut.exits, ztw.MaxSoftmax) for exit in (0, cut.exits - 1)]
    sample = one_of(batch)
    attempt(
        cells,
        "PyTorch, exit 1",
        lambda: share(*fastest([lambda rule=rule: cut.infer(sample, rule) for rule in rules])),
    )
    cells["cost, exit 1"] = f"{float(ztw.macs(cut)[0]) / ztw.macs(cut.backbone):.2f}"

    def exported() -> str:
        path = ztw.export_onnx(cut, "max_softmax 0.5", folder / "ours.onnx")
        runner = ztw.OnnxRunner(path, threads=1, cache=False)
        return share(*fastest([lambda rule=rule: runner(sample, rule) for rule in rules]))

    attempt(cells, "ONNX, exit 1", exported)
    return cells


def theirs(name: str, case: Case, folder: Path) -> Cells:
    """Take a model with earlyon, as it is, else in a module of the user's."""
    cells = Cells()
    for own in (False, True):
        cells = as_earlyon(name, case, folder, own)
        if all(cells.get(step) == "yes" for step in ("wraps", "infers")):
            break
    return cells


def as_earlyon(name: str, case: Case, folder: Path, own: bool) -> Cells:
    cells, model = Cells(), build(name)
    batch, labels = batch_like(case.example, SAMPLES), torch.arange(SAMPLES) % CLASSES
    given = (
        batch
        if isinstance(batch, Tensor)
        else next(iter(batch.values()))
        if isinstance(batch, dict)
        else batch[0]
    )
    lost = "" if isinstance(batch, Tensor) else f"; only the first of {len(batch)} inputs is passed"
    prefix = "model." if own else ""
    backbone = AsEarlyonCallsIt(model) if own else model
    layers = [prefix + place for place in case.at]
    cells["form"] = f"in a module of the user's{lost}" if own else f"as it is{lost}"

    def wrapped() -> Any:
        return custom_ee(
            backbone,
            layers,
            CLASSES,
            input_shape=(1, *given.shape[1:]),  # type: ignore[arg-type]
            example_args=(given[:1],),
            feature_extractors=dict.fromkeys(layers, first) if own else None,
        )

    wrapper = attempt(cells, "wraps", wrapped)
    if wrapper is None:
        return cells
    loader = DataLoader(TensorDataset(given, labels), batch_size=8)
    quiet = {"epochs": 1, "on_epoch_end": lambda log: None}
    attempt(cells, "trains heads", lambda: stage2_train_exits(wrapper, loader, **quiet))
    attempt(cells, "trains jointly", lambda: joint_train_backbone_and_exits(wrapped(), loader, **quiet))
    wrapper.eval()
    sample = given[:1]

    def infers(at_once: bool = True) -> Any:
        wrapper.config.confidence_thresholds = [0.0 if at_once else 1.0] * len(layers)
        wrapper.config.enabled_exits = [at_once] * len(layers)
        return wrapper(sample, mode="inference")

    def exits() -> str:
        found = infers(True).exit_taken, infers(False).exit_taken
        return "yes" if found == (0, -1) else f"exits {found}"

    attempt(cells, "infers", exits)
    attempt(cells, "PyTorch, exit 1", lambda: share(*fastest([lambda: infers(True), lambda: infers(False)])))
    estimate = wrapper.flops_estimate
    cells["cost, exit 1"] = f"{estimate.fractions[layers[0]]:.2f}" + (
        "" if estimate.reliable else " (not reliable)"
    )

    def kept() -> str:
        save_wrapper(wrapper, folder / "theirs.pth")
        load_wrapper(folder / "theirs.pth")
        return "yes"

    attempt(cells, "loads without the model's code", kept)

    def exported() -> str:
        path = folder / "theirs.onnx"
        export_all_exits_to_onnx(wrapper, path, input_shape=tuple(sample.shape))  # type: ignore[arg-type]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: sample.numpy()}
        names = [output.name for output in session.get_outputs()]
        return share(*fastest([lambda: session.run(names[:1], feed), lambda: session.run(names, feed)]))

    attempt(cells, "ONNX, exit 1", exported)
    return cells


def row(name: str, ours: Cells, theirs: Cells) -> str:
    """Return the row of a model in the published table: the time at exit 1 in percent, and what was refused."""
    times = [
        cells.get(key, "").partition(" = ")[2] or "-"
        for cells in (ours, theirs)
        for key in ("PyTorch, exit 1", "ONNX, exit 1")
    ]
    steps = ("wraps", "trains heads", "trains jointly", "infers")
    refused = [f"ztw: {step}" for step in steps if ours.get(step, "yes") != "yes"]
    refused += [f"earlyon: {theirs[step]}"[:90] for step in steps if theirs.get(step, "yes") != "yes"][:1]
    notes = "; ".join([theirs["form"].removeprefix("as it is").removeprefix("; "), *refused])
    return " | ".join(["", name, *times, notes.strip("; "), ""]).strip()


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, earlyon {earlyon.__version__}")
    rows = []
    for name in names or CASES:
        both = []
        for library, take in (("ztw", ours), ("earlyon", theirs)):
            with tempfile.TemporaryDirectory() as folder:
                both.append(take(name, CASES[name], Path(folder)))
            lines = (f"  {key}: {value}" for key, value in both[-1].items())
            print(f"\n{name}, {library}:", *lines, sep="\n", flush=True)
        rows.append(row(name, *both))
    print("", *rows, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
