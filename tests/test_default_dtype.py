"""Test other default dtypes than float32: one-line errors with networks, the same results without."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import small_network, stripes
from torch import nn

import ztw
from ztw.data.prepare import prepare_dataset
from ztw.data.splits import cell_splits
from ztw.exits.temperatures import fit_temperatures
from ztw.exits.thresholds import candidates
from ztw.study.settings import DataSettings

IMAGES, LABELS = next(stripes(40).batches(40))
RULE = ztw.MaxSoftmax(0.5)


@pytest.fixture(scope="module")
def network() -> ztw.EarlyExitNetwork:
    return small_network("cascade")


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def other_dtype(request, network) -> Iterator[None]:
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(torch.float32)


NEED_A_NETWORK: dict[str, Callable[[ztw.EarlyExitNetwork, str], object]] = {
    "build_backbone": lambda network, path: ztw.build_backbone("vgg16_bn"),
    "torchvision": lambda network, path: ztw.build_backbone("torchvision/resnet18"),
    "as_backbone": lambda network, path: ztw.as_backbone(nn.Sequential(nn.Flatten()), (1, 10, 10)),
    "Backbone": lambda network, path: ztw.Backbone("toy", [nn.Flatten()], nn.Linear(100, 5), (1, 10, 10)),
    "build_network": lambda network, path: ztw.build_network(network.backbone),
    "train_exits": lambda network, path: ztw.train_exits(network, (IMAGES, LABELS), 1, progress=False),
    "predict": lambda network, path: ztw.predict(network, (IMAGES, LABELS), progress=False),
    "infer": lambda network, path: network.infer(IMAGES, RULE),
    "macs": lambda network, path: ztw.macs(network),
    "published": lambda network, path: ztw.macs(network, "published"),
    "of a backbone": lambda network, path: ztw.macs(network.backbone),
    "choose_threshold": lambda network, path: ztw.choose_threshold(
        network, (IMAGES, LABELS), budget=1.0, progress=False
    ),
    "save": lambda network, path: ztw.save(network, path),
    "export_onnx": lambda network, path: ztw.export_onnx(network, RULE, path),
}


@pytest.mark.parametrize("name", NEED_A_NETWORK)
def test_functions_of_networks_raise_an_error(name, network, other_dtype, tmp_path):
    """Without this error, MACs would be wrong and other functions would end in tracebacks."""
    with pytest.raises(
        ztw.ZtwError, match=r"^PyTorch's default dtype is torch\.\w+, must be torch.float32"
    ) as caught:
        NEED_A_NETWORK[name](network, str(tmp_path / "file"))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_saved_network(network, tmp_path):
    ztw.save(network, tmp_path / "saved")
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ztw.ZtwError, match="PyTorch's default dtype is torch"):
            ztw.load(tmp_path / "saved")
    finally:
        torch.set_default_dtype(torch.float32)


def of_logits(path: str) -> list[torch.Tensor]:
    """Return results that are computed from logits only."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 200, 5, generator=generator, dtype=torch.float32)
    labels = torch.randint(5, (200,), generator=generator)
    cost = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    curves = [
        ztw.sweep(logits, labels, cost, ztw.fit_rule(logits, labels, rule)) for rule in ztw.list_rules()
    ]
    return [
        *(ztw.fit_ensemble(logits, labels, kind)(logits) for kind in ztw.list_ensembles()),
        *(curve.accuracy for curve in curves),
        *(
            candidates(name, logits, labels, cost, "max_softmax", 50).thresholds
            for name in ztw.list_thresholds()
        ),
        ztw.accuracy_at_budget(curves[0], [0.5, 1.0], 8.0),
        ztw.hindsight_improvability(logits, labels),
        fit_temperatures(logits, labels),
    ]


def of_data(path: str) -> list[torch.Tensor]:
    """Return the batches of a data set after preparation, split, augmentation and normalisation."""
    record = prepare_dataset("digits", path)
    settings = DataSettings(colour_jitter=0.2, jitter_order="random", flip=True, crop_padding=1)
    train = cell_splits(record, settings, 0)["train"]
    return [images for images, _ in train.batches(500, torch.Generator().manual_seed(0), augmented=True)]


@pytest.mark.parametrize("compute", [of_logits, of_data])
def test_other_functions_compute_the_same(compute, tmp_path):
    expected = compute(str(tmp_path / "32"))
    torch.set_default_dtype(torch.float64)
    try:
        found = compute(str(tmp_path / "64"))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(
        found, expected, check_dtype=compute is of_data, atol=1e-4, rtol=1e-4, equal_nan=True
    )


def test_networks_of_another_dtype():
    doubled = small_network().double()
    for call in (ztw.train_exits, ztw.predict):
        with pytest.raises(
            ztw.ZtwError, match=r"the network has torch.float64 weights, must be torch.float32"
        ):
            call(doubled, (IMAGES, LABELS), progress=False)
