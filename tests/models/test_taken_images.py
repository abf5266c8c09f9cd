"""Test which images a network accepts: the same for `infer`, `predict` and the runner."""

from __future__ import annotations

import copy
import os
import pickle
import signal

import numpy as np
import onnxruntime
import pytest
import torch
from onnx_networks import images_for, network_of

import ztw

RULE = ztw.MaxSoftmax(0.5)
LABELS = torch.arange(9) % 5
NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture(scope="module")
def network():
    return network_of("cascade_detached", None)


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    return ztw.export_onnx(network, RULE, tmp_path_factory.mktemp("onnx") / "network.onnx")


@pytest.fixture
def runner(file):
    return ztw.OnnxRunner(file, threads=2, cache=False)


@pytest.fixture
def forms(network, runner):
    """Functions from images to logits: (N, C), or (K, N, C) of all exits."""
    return {
        "infer": lambda images: network.infer(images, RULE).logits,
        "runner": lambda images: runner(images).logits,
        "runner, one by one": lambda images: torch.cat([runner(image[None]).logits for image in images]),
        "logits of the runner": runner.logits,
        "predict": lambda images: ztw.predict(network, (images, LABELS), progress=False)[0],
    }


@pytest.mark.parametrize(
    "take",
    [
        torch.Tensor.double,
        torch.Tensor.numpy,
        lambda images: images.numpy().astype(np.float64),
        lambda images: images.numpy()[:, :, :, ::-1].copy()[:, :, :, ::-1],
        lambda images: images.to(memory_format=torch.channels_last),
    ],
    ids=["float64", "numpy", "float64 of numpy", "negative strides", "channels_last"],
)
def test_floating_point_numbers_are_taken_as_float32(network, forms, take):
    images = images_for(network, 9)
    for name, form in forms.items():
        torch.testing.assert_close(form(take(images)), form(images), msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted(network, forms, dtype):
    images = images_for(network, 9).to(dtype)
    for name, form in forms.items():
        torch.testing.assert_close(form(images), form(images.float()), msg=name)


def test_an_array_that_cannot_be_written_is_taken_without_a_warning(network, forms):
    images = images_for(network, 9).numpy()
    images.flags.writeable = False
    for form in forms.values():
        form(images)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(9, 3, 10, 10, dtype=torch.uint8), "images: uint8, must be float32"),
        (torch.zeros(9, 3, 10, 10, dtype=torch.bool), "images: bool, must be float32"),
        (np.zeros((9, 3, 10, 10), np.uint8), "images: uint8, must be float32"),
        (np.zeros((9, 3, 10, 10), np.complex64), "images: complex64, must be float32"),
        (np.full((9, 3, 10, 10), "0.5"), "images: .*U3"),
        (torch.zeros(9, 3, 12, 12), r"images: shape \([19], 3, 12, 12\), must be \(N, 3, 10, 10\)"),
        (torch.zeros(9, 1, 10, 10), r"images: shape \([19], 1, 10, 10\), must be \(N, 3, 10, 10\)"),
    ],
)
def test_other_images_are_refused_by_every_form(forms, wrong, message):
    for form in forms.values():
        with pytest.raises(ztw.ZtwError, match=message):
            form(wrong)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_an_image_that_is_not_finite_is_refused_by_every_form(network, forms, value):
    images = images_for(network, 9)
    images[4, 1, 2, 3] = value
    for form in forms.values():
        with pytest.raises(ztw.ZtwError, match=r"images: some (pixels|values) are NaN or infinite"):
            form(images)


@pytest.mark.parametrize("rule", [RULE, ztw.MaxSoftmaxOrBest(0.5), ztw.Entropy(1.0)], ids=str)
def test_in_the_exported_graph_a_score_that_is_not_a_number_passes_nothing(network, file, tmp_path, rule):
    """As in `infer`, the sample leaves at the last exit, also in a runtime that does not check images."""
    path = file if rule is RULE else ztw.export_onnx(network, rule, tmp_path / "network.onnx")
    images, session = images_for(network, 9), onnxruntime.InferenceSession(path)
    _, before = session.run(None, {"images": images.numpy()})
    for value in NOT_FINITE:
        images[4] = value
        _, exits = session.run(None, {"images": images.numpy()})
        assert exits.tolist() == [*before[:4], 3, *before[5:]]
        _, alone = session.run(None, {"images": images[4:5].numpy()})
        assert alone.tolist() == [3]


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_runner_can_be_copied_before_and_after_use(network, runner, used, copied):
    images = images_for(network, 40)
    expected = network.infer(images, RULE)
    if used:
        runner(images), runner(images[:1]), runner.logits(images)
    for one in (copied(runner), runner):
        assert one(images).exit_index.equal(expected.exit_index)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
@pytest.mark.parametrize("count", [1, 40])
def test_a_runner_works_in_a_forked_process(network, runner, count):
    """As under `gunicorn --preload`: the child process does not have the threads of the parent's sessions."""
    images = images_for(network, count)
    expected = runner(images).exit_index.tolist()
    child = os.fork()
    if not child:
        signal.alarm(20)  # a hang ends here
        os._exit(0 if runner(images).exit_index.tolist() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert runner(images).exit_index.tolist() == expected
