"""Test that every torchvision model of the table is cut into the table's number of blocks."""

from __future__ import annotations

import pytest
import torchvision

from ztw.batch import InputSpec
from ztw.catalogue.torchvision import TORCHVISION_BLOCKS
from ztw.models.cut import cut_model


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("name", TORCHVISION_BLOCKS)
def test_number_of_blocks(name):
    model = torchvision.models.get_model(name, weights=None)
    names = model.state_dict().keys()
    size = 299 if name == "inception_v3" else 224 if name.startswith("vit_") else 64
    backbone = cut_model(model, name, InputSpec.of_shape((3, size, size)), 7)
    stages = backbone.stages
    assert len(stages) == TORCHVISION_BLOCKS[name]
    parts = [*stages, backbone.classifier]
    assert sorted(key for part in parts for key in part.state_dict()) == sorted(names)
    assert all(any(True for _ in stage.parameters()) for stage in stages)
