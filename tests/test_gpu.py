"""The same on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from conftest import small_network, stripes

import ztw
from ztw.evaluation.predictions import predict
from ztw.training.recipe import Recipe
from ztw.training.separate import train_backbone, train_ics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_infer_is_sweep_on_the_gpu():
    network = small_network("cascade_detached").cuda()
    images = torch.randn(64, 1, 10, 10).cuda()
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


def test_training_on_the_gpu():
    data = stripes().to(torch.device("cuda"))
    torch.manual_seed(0)
    backbone = ztw.build_backbone("resnet8", 5, 1, 10).cuda()
    history = train_backbone(backbone, data, Recipe(4, 32, 0.1, 1e-4, precision="bf16"), seed=0)
    network = ztw.build_network(backbone, "cascade_detached").cuda()
    train_ics([network], data, Recipe(2, 32, 0.01, 0.0, precision="bf16"), seed=0)
    (logits,), labels = predict([network], data, precision="bf16")
    assert history[-1]["loss"] < history[0]["loss"]
    assert logits.shape == (4, 128, 5)
    assert labels.device.type == "cpu"
