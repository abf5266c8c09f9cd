"""The library's path with the packages that `pip install ztw` installs: run it as a script, in a folder of its own."""

from __future__ import annotations

import torch
from PIL import Image

import ztw


def main() -> None:
    """Cut, train, choose a threshold, save, load and infer; write an image and a network for `ztw predict`."""
    torch.manual_seed(0)
    blocks = [torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.ReLU()) for _ in range(4)]
    model = torch.nn.Sequential(*blocks, torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 10))
    images, labels = torch.randn(64, 3, 8, 8), torch.arange(64) % 10
    train, held_out = (images[:40], labels[:40]), (images[40:], labels[40:])

    backbone = ztw.as_backbone(model, input_shape=(3, 8, 8))
    network = ztw.build_network(backbone, head="pool", connection="cascade_detached", progress=False)
    ztw.train_exits(network, train, epochs=1, checkpoints="checkpoints", progress=False)
    logits, found = ztw.predict(network, held_out, progress=False)
    network.ensemble = ztw.fit_ensemble(logits, found)
    point = ztw.choose_threshold(network, held_out, budget="max", progress=False)
    ztw.choose_threshold(network, held_out, risk=(0.3, 0.3), progress=False)
    curve = ztw.sweep(logits, found, ztw.macs(network), "max_softmax")
    ztw.accuracy_at_budget(curve, [0.5], ztw.macs(backbone))
    known = (logits, found)
    ztw.write_predictions("logits.npz", known, known, cost=ztw.macs(network), base_cost=ztw.macs(backbone))

    ztw.save(network, "network", point.rule, progress=False)
    loaded, rule = ztw.load("network")
    assert rule is not None
    result = loaded.infer(images, rule)
    assert result.logits.shape == (64, 10)
    Image.new("RGB", (9, 7)).save("image.png")


if __name__ == "__main__":
    main()
