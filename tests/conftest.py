"""Fixtures that many tests share: small networks, images that can be learned, and logits."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_study
import torch
from torch import Tensor, nn

import ztw
from ztw.data.decoded import ImageSet
from ztw.data.prepare import prepare_dataset
from ztw.data.record import of_split
from ztw.models.placement import Placement
from ztw.study.plugins import forget

LONGEST = ("test_workflow.py", "test_full_disk.py", "test_kills.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that the other files run on the other core meanwhile."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: for tiny networks a second thread costs more time than it saves."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_parts_of_other_tests():
    """Remove the parts that a test has registered."""
    yield
    forget()


@pytest.fixture
def uninitialised(monkeypatch):
    """Skip the random initialisation of weights, which takes most of the time of building a model."""
    for name in (
        "kaiming_uniform_",
        "kaiming_normal_",
        "xavier_uniform_",
        "uniform_",
        "normal_",
        "trunc_normal_",
    ):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.fixture
def logits() -> torch.Tensor:
    """Random logits (4, 200, 5)."""
    return 3 * torch.randn(4, 200, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> torch.Tensor:
    """Random labels (200,) of 5 classes."""
    return torch.randint(5, (200,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def cost() -> torch.Tensor:
    return torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)


def small_network(connection: str = "independent", placement: Placement = "all") -> ztw.EarlyExitNetwork:
    """Return a resnet8 for 10x10 grey images and 5 classes, in eval mode, with calibrated BatchNorm statistics.

    Its predictions are diverse and confident, so that samples leave at every exit. The network is built once and
    copied. The global generator is in the same state after each call.
    """
    network, state = _small_network(connection, placement if isinstance(placement, str) else tuple(placement))
    torch.set_rng_state(state)
    return copy.deepcopy(network)


@cache
def _small_network(connection: str, placement: str | tuple[Any, ...]) -> tuple[ztw.EarlyExitNetwork, Tensor]:
    torch.manual_seed(3)
    backbone = ztw.build_backbone("resnet8", num_classes=5, channels=1, size=10)
    network = ztw.build_network(backbone, connection, placement=placement)
    images = torch.randn(64, 1, 10, 10)
    with torch.no_grad():
        for _ in range(3):
            network(images)
        network.eval()
        linears: list[Any] = [head.linear for head in network.heads]
        linears += list(backbone.classifier.children())[-1:]
        for exit, linear in enumerate(linears):
            logits = network(images)[exit]
            linear.weight.mul_(2.5 / (logits - logits.mean(0)).std())
            linear.bias.sub_(network(images)[exit].mean(0))
    return network, torch.get_rng_state()


def pixel_network(connection: str) -> ztw.EarlyExitNetwork:
    """Return a network of three identity stages and heads: the logits of every exit are the image's pixels."""
    stages = [nn.Sequential(nn.Flatten(), nn.Identity()), nn.Identity(), nn.Identity()]
    backbone = ztw.Backbone("toy", stages, nn.Identity(), (1, 1, 4))
    heads = [nn.Identity() for _ in range(3)]
    return ztw.EarlyExitNetwork(backbone, heads, (0, 1, 2), connection)


def stripes(count: int = 128) -> ImageSet:
    """Return grey 10x10 images of five classes. The class is the position of a bright row."""
    labels = torch.arange(count) % 5
    images = torch.randint(60, (count, 1, 10, 10), generator=torch.Generator().manual_seed(0))
    images[torch.arange(count), 0, 2 * labels] = 250
    return ImageSet(images.byte(), labels, 5, (0.3,), (0.3,))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's weights and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Return whether two states are equal bit for bit."""
    return all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Records of scikit-learn's digits by split; decoded once."""
    record = prepare_dataset("digits", tmp_path_factory.mktemp("digits"))
    return {split: of_split(record, split) for split in ("train", "test")}


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """Set a temporary data root for the studies that tests run."""
    os.environ["ZTW_DATA"] = str(tmp_path_factory.mktemp("data"))
    yield
    del os.environ["ZTW_DATA"]


@pytest.fixture(scope="session")
def finished(data_root, tmp_path_factory) -> Path:
    """A folder in which the tiny study has run, once per session. Tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    done = tiny_study.run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ztw-nostop" in done.stdout
    assert f"make ui CONFIG={tiny_study.TINY}" in done.stdout
    return folder


ROWS = pytest.StashKey[list[tuple[str, ...]]]()


@pytest.fixture(scope="session")
def tell(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Add a row to the table that is printed at the end: what was done, and what was lost."""
    rows = request.config.stash.setdefault(ROWS, [])
    return lambda *row: rows.append(row)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the rows of a worker process to the main process (pytest-xdist)."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["rows"] = session.config.stash.get(ROWS, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect the rows of a worker process."""
    rows = getattr(node, "workeroutput", {}).get("rows", [])
    node.config.stash.setdefault(ROWS, []).extend(map(tuple, rows))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of all rows, in the order of the faults' numbers."""
    found: list[tuple[str, ...]] = config.stash.get(ROWS, [])
    rows = sorted(found, key=lambda row: [int(word) for word in row[0].split()[:1] if word.isdigit()])
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminalreporter.section("what was done, and what came of it")
    for row in rows:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())
