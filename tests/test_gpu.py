"""Test the CPU and, if there is one, a GPU; CUDA graphs are captured on a GPU only."""

from __future__ import annotations

import pytest
import torch
from conftest import small_network, stripes
from text_networks import shortened, text_network, texts
from torch.utils.data import DataLoader

import ztw
from ztw.device import Compute
from ztw.evaluation.predictions import predict_networks
from ztw.training.cuda_graph import CapturedGradients
from ztw.training.joint import JointLoss, exit_weights, train_jointly
from ztw.training.recipe import Recipe
from ztw.training.separate import train_backbone, train_separately

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=needs_gpu)])
def device(request) -> torch.device:
    return torch.device(request.param)


def test_infer_equals_sweep(device):
    network = small_network("cascade_detached").to(device)
    images = torch.randn(64, 1, 10, 10).to(device)
    with torch.no_grad():
        logits = network(images)
    network.ensemble = ztw.fit_ensemble(logits, logits.mean(0).argmax(-1))
    answers = network.ensemble(logits).cpu()
    confidence = answers.exp().max(-1).values
    for threshold in (0.3, 0.6, 0.9):
        if (confidence - threshold).abs().min() < 1e-4:
            continue
        result = network.infer(images, ztw.MaxSoftmax(threshold))
        passing = (confidence > threshold).int()
        passing[-1] = 1
        assert result.exit_index.cpu().tolist() == passing.argmax(0).tolist()


def test_training_in_half_precision(device):
    compute = Compute(device, "bf16")
    data = stripes().to(compute.device)
    torch.manual_seed(0)
    backbone = ztw.build_backbone("resnet8", 5, 1, 10).to(device)
    history = train_backbone(backbone, data, Recipe(4, 32, 0.1, 1e-4, compute=compute), seed=0)
    network = ztw.build_network(backbone, "cascade_detached").to(device)
    train_separately([network], data, Recipe(2, 32, 0.01, 0.0, compute=compute), seed=0)
    (logits,), labels = predict_networks([network], data, compute=compute)
    assert history[-1]["loss"] < history[0]["loss"]
    assert logits.shape == (4, 128, 5)
    assert labels.device.type == "cpu"


@pytest.mark.parametrize("what", ["backbone", "ics", "joint"])
def test_a_captured_step_trains_the_same(device, what, monkeypatch):
    """On a CPU no step is captured: training with cuda_graph=True is normal training."""
    replay, replays = torch.cuda.CUDAGraph.replay, iter(range(100))

    def counted(graph):
        next(replays)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    data = stripes().to(device)

    def trained(cuda_graph):
        torch.manual_seed(0)
        backbone = ztw.build_backbone("resnet8", 5, 1, 10).to(device)
        recipe = Recipe(4, 24, 0.01, 1e-4, cuda_graph=cuda_graph)  # the last batch of an epoch is smaller
        if what == "backbone":
            return train_backbone(backbone, data, recipe, seed=0), backbone
        network = ztw.build_network(backbone, "cascade_detached").to(device)
        if what == "ics":
            return train_separately([network], data, recipe, seed=0)[0], network
        loss = JointLoss(network, exit_weights(network, "growing"))  # weights that change from step to step
        return train_jointly(loss, data, recipe, seed=0), network

    (plain, usual), (graph, captured) = trained(False), trained(True)
    assert next(replays) == (4 * 5 - 3 if device.type == "cuda" else 0), "all full batches after three"
    # not bit for bit: differences in the last digit, from the order of sums, grow with the steps
    assert plain[0]["loss"] == pytest.approx(graph[0]["loss"], rel=1e-3)
    assert plain[-1]["loss"] == pytest.approx(graph[-1]["loss"], rel=0.03)
    for (name, one), other in zip(usual.state_dict().items(), captured.state_dict().values(), strict=True):
        assert (one - other).float().norm() <= 0.03 * one.float().norm() + 1e-3, name


@needs_gpu
def test_training_continues_without_a_capture(monkeypatch):
    data = stripes().to(torch.device("cuda"))
    backbone = ztw.build_backbone("resnet8", 5, 1, 10).cuda()
    backbone.stages[1].register_forward_hook(lambda stage, images, out: out + 0 * out.sum().item())
    said: list[str] = []
    (first, *_, last) = train_backbone(
        backbone, data, Recipe(4, 32, 0.05, 1e-4, cuda_graph=True), seed=0, report=said.append
    )
    assert last["loss"] < first["loss"]
    (note,) = (line for line in said if "cannot be captured" in line)
    assert "stream is capturing" in note, "what broke it"
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_texts_train_and_predict(device):
    """Data stay where they are; batches are moved. Nothing of several tensors is captured."""
    network, usual = text_network().to(device), text_network()
    (inputs, labels) = texts()
    for one in (network, usual):
        ztw.train_exits(one, (inputs, labels), 2, regime="joint", batch_size=32, progress=False)
    rows = [
        ({name: values[row] for name, values in inputs.items()}, labels[row]) for row in range(len(labels))
    ]
    loader: DataLoader = DataLoader(rows, 20, collate_fn=shortened)  # type: ignore[arg-type]
    logits, found = ztw.predict(network, loader, progress=False)
    assert torch.equal(found, labels)
    torch.testing.assert_close(
        logits, ztw.predict(usual, (inputs, labels), progress=False)[0], atol=1e-2, rtol=1e-2
    )


def test_batches_of_another_length_are_not_replayed(device):
    layer = torch.nn.Linear(1, 1).to(device)

    def compute(inputs, labels, weights):
        layer.zero_grad(set_to_none=True)
        loss = weights[0] * layer(inputs[..., None]).sum()
        loss.backward()
        return loss.detach()[None], labels.sum()[None]

    gradients = CapturedGradients(compute, list(layer.parameters()), 4, None)
    for length in (3, 3, 3, 3, 3, 5, 3):
        inputs = torch.randn(4, length, device=device)
        (loss,), _ = gradients(inputs, torch.ones(4, device=device), torch.ones(1, device=device))
        torch.testing.assert_close(loss, layer(inputs[..., None]).sum().detach())
        torch.testing.assert_close(layer.weight.grad, inputs.sum().view(1, 1))
