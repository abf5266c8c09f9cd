"""Test the mixed pool against PyTorch's pooling, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ztw.models.pooling import MixedPool, pooling_matrix


@pytest.mark.parametrize(("size", "target"), [(28, 4), (14, 4), (7, 4), (5, 2), (4, 4), (3, 3)])
def test_mixed_pool(size, target):
    x = torch.randn(2, 3, size, size, requires_grad=True)
    pool = MixedPool(target)
    pool.alpha.data.fill_(0.3)
    weights = torch.randn(2, 3, target, target)
    out = pool(x)
    expected = 0.3 * F.adaptive_max_pool2d(x, target) + 0.7 * F.adaptive_avg_pool2d(x, target)
    torch.testing.assert_close(out, expected)
    with torch.no_grad():
        torch.testing.assert_close(pool(x), expected)
    (own,) = torch.autograd.grad((out * weights).sum(), x)
    (reference,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(own, reference)


def test_pooling_matrix_rows_are_means():
    matrix = pooling_matrix(7, 4)
    torch.testing.assert_close(matrix.sum(1), torch.ones(4))
    assert (matrix[1] > 0).nonzero().flatten().tolist() == [1, 2, 3]
