"""Test that every torchvision model of the table is cut into the table's number of blocks."""

from __future__ import annotations

import pytest
import torchvision

from ztw.catalogue.torchvision import TORCHVISION_BLOCKS
from ztw.models.cut import cut_model


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("name", TORCHVISION_BLOCKS)
def test_number_of_blocks(name):
    model = torchvision.models.get_model(name, weights=None)
    names = model.state_dict().keys()
    stages, classifier = cut_model(model, name, 7)
    assert len(stages) == TORCHVISION_BLOCKS[name]
    parts = [*stages, classifier]
    assert sorted(key for part in parts for key in part.state_dict()) == sorted(names)
    assert all(any(True for _ in stage.parameters()) for stage in stages)
