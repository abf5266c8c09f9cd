"""What a reader of a figure relies on."""

from __future__ import annotations

import pytest

from ztw.reporting.figures import style


@pytest.mark.parametrize("count", [1, 9, 12, 15, 40])
def test_no_two_methods_look_the_same(count):
    looks = style([f"method {index}" for index in range(count)])
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == count
