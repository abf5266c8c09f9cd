"""Say whether early exits pay for a model: measure it against what one would do instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from ztw.batch import size_of
from ztw.data.dataset import Data
from ztw.data.user_data import as_data
from ztw.data.wanted import wanted_by
from ztw.device import check_default_dtype
from ztw.errors import ZtwError
from ztw.evaluation.advice import Advice
from ztw.evaluation.advice_option import ALTERNATIVE, CASCADE, EXITS, MODEL, Option
from ztw.evaluation.advise_files import Candidate, with_exits
from ztw.evaluation.advise_inputs import (
    batches_to_time,
    calibration,
    check_numbers,
    example_of,
    moved_like,
    named_models,
    to_backbone,
)
from ztw.evaluation.advise_options import Maker
from ztw.evaluation.cross_fit import LEAST
from ztw.evaluation.turn_times import (
    FEWEST,
    Call,
    batches_within,
    round_times,
    torch_threads,
    weights_of,
)
from ztw.models.backbone import Backbone
from ztw.models.cascade import model_cascade
from ztw.models.network import static_network
from ztw.progress import Report, reporter
from ztw.training.regimes import train_exits

STEPS, EPOCHS, BATCH = 300, 3, 128  # by default, the exits train so many steps, and at least so many epochs
LR, DROP = 3e-3, 0.7  # learning rate, and the share of the epochs after which it is divided by 10


def advise(
    model: nn.Module,
    train: Any,
    held_out: Any,
    *,
    alternatives: Sequence[nn.Module] | Mapping[str, nn.Module] = (),
    allowed_loss: float = 0.01,
    batch_size: int = 1,
    threads: int = 1,
    epochs: float | None = None,
    input_shape: Sequence[int] | None = None,
    example: Any = None,
    seed: int = 0,
    progress: bool | Report = True,
) -> Advice:
    """Measure on this machine whether early exits pay for a model, and recommend the fastest option.

    The options, each in float32 and int8: the model as it is; the alternatives; the model cut after one exit; the model
    with exits (light heads, trained on the frozen model); a cascade of each alternative and the model. They run on the
    CPU, in ONNX Runtime; in PyTorch where that is faster.

    Accuracies are those of samples that chose nothing: thresholds and ensembles come from one half of the held-out
    samples, and the other half judges them, both ways round. The returned thresholds come from all of them.

    The recommended option is the fastest one that loses at most `allowed_loss`, as measured, and is faster than the
    model: in each of five rounds, and by 5 % in the median. A simpler option is preferred if the fastest one is not
    faster than it in the same sense. If there is none, the advice is to leave the model as it is. The recommendation
    also says which differences are noise.

    Args:
        model: a trained classifier, or its Backbone. It stays unchanged.
        train: training samples in any form of `train_exits`, for the exits and for int8.
        held_out: samples that trained neither the model nor the alternatives, in the same forms and in a fixed order.
        alternatives: smaller trained classifiers of the same inputs and classes, in a list, or in a dict by name.
        allowed_loss: the largest loss of accuracy against the model, in [0, 1).
        batch_size: samples per call that is timed.
        threads: CPU threads per call.
        epochs: passes over `train` for the exits; None = 300 steps, and at least 3 epochs.
        input_shape: shape of one image, see `as_backbone`; None = as the first samples of `train`.
        example: a batch of other inputs, see `as_backbone`; None = the first samples of `train`.
        seed: of the halves, the exits' training and the timed samples. The same seed gives the same accuracies.
        progress: see `train_exits`.

    Returns:
        The advice. `print(advice)` shows a table and the recommendation; `advice.best.save(folder)` writes what runs.
        An option that fails is in the table with the reason.

    Raises:
        ZtwError: for invalid arguments, inputs or labels.

    Example:
        >>> import torch, ztw
        >>> features, labels = torch.randn(400, 20), torch.randint(3, (400,))
        >>> train, held_out = (features[:300], labels[:300]), (features[300:], labels[300:])
        >>> layers = [torch.nn.Linear(20, 20), torch.nn.ReLU(), torch.nn.Linear(20, 20), torch.nn.ReLU()]
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(20, 3))  # a trained classifier of yours
        >>> advice = ztw.advise(model, train, held_out, epochs=1, progress=False)
        >>> advice.options[0].name, advice.samples
        ('model', 100)
        >>> advice.best.save("what-runs")
    """
    check_numbers(allowed_loss, batch_size, threads, epochs, seed)
    report = reporter(progress)
    check_default_dtype()
    smaller = named_models(alternatives)
    if isinstance(held_out, DataLoader) and isinstance(held_out.sampler, RandomSampler):
        raise ZtwError(
            "held_out: a DataLoader that shuffles, must keep its order; make it with shuffle=False"
        )
    with torch.random.fork_rng([]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        given = example_of(train, input_shape, example)
        backbone, uncut = to_backbone(model, given, "model")
        others = {
            name: moved_like(to_backbone(one, given, name)[0], backbone, name)
            for name, one in smaller.items()
        }
        wanted = wanted_by(static_network(backbone))
        data, judges = as_data(train, wanted, "advise: train"), as_data(held_out, wanted, "advise: held_out")
        maker = Maker(judges, calibration(data), threads, allowed_loss, seed, report)
        _make_options(maker, backbone, uncut, others, data, epochs)
        batches = batches_to_time(judges, batch_size, seed)
        maker.say("times")
        with torch_threads(threads):
            options = _timed(maker, batches)
    maker.say("done", "100 %  ")
    many = f"{threads} thread{'s' if threads > 1 else ''}"
    return Advice.of(options, len(judges), allowed_loss, f"batch {batch_size}, {many}")


def _make_options(
    maker: Maker,
    backbone: Backbone,
    uncut: str,
    others: Mapping[str, Backbone],
    data: Data,
    epochs: float | None,
) -> None:
    """Make all options, from the simplest to the most complex."""
    own = maker.predict(static_network(backbone))[0]
    samples = own.shape[0]
    if samples < LEAST:
        raise ZtwError(f"held_out: {samples} samples, must be at least {LEAST}")
    maker.static("model", MODEL, backbone, own)
    logits: dict[str, Tensor] = {}
    for name, other in others.items():
        try:
            logits[name] = maker.static(name, ALTERNATIVE, other)
        except Exception as error:
            maker.failed(name, ALTERNATIVE, error)
    try:
        _make_exits(maker, backbone, uncut, data, epochs)
    except Exception as error:
        maker.failed("exits", EXITS, error)
    for name, found in logits.items():
        title = f"cascade {name} + model"
        try:
            cascade = model_cascade([others[name], backbone])
            maker.several_exits(title, CASCADE, cascade, torch.stack([found, own]))
        except Exception as error:
            maker.failed(title, CASCADE, error)


def _make_exits(maker: Maker, backbone: Backbone, uncut: str, data: Data, epochs: float | None) -> None:
    if uncut:
        raise ZtwError(uncut)
    network = with_exits(backbone)
    maker.say(f"training {len(network.heads)} exits")
    epochs = epochs or max(EPOCHS, round(STEPS * BATCH / len(data)))
    train_exits(
        network,
        data,
        epochs,
        lr=LR,
        milestones=(DROP * epochs,),
        batch_size=BATCH,
        seed=maker.seed,
        progress=maker.report is not None and (lambda line: maker.say(f"exits: {line}")),
    )
    maker.several_exits("exits", EXITS, network, maker.predict(network), fixed=True)


def _timed(maker: Maker, batches: Sequence[Any]) -> list[Option]:
    """Time all candidates, and return all options in their order."""
    maker.leave_out_what_does_not_run(batches[0])
    trials = [
        (number, runtime, call)
        for number, one in enumerate(maker.found)
        if isinstance(one, Candidate)
        for runtime, call in one.calls.items()
    ]
    few = round_times([call for *_, call in trials], batches[:FEWEST], rounds=1)[:, 0].tolist()
    kept = [
        trial
        for trial, ms in zip(trials, few, strict=True)
        if maker.is_model(trial[0])
        or ms == min(other for (number, *_), other in zip(trials, few, strict=True) if number == trial[0])
    ]
    each = 1e-3 * sum(ms for trial, ms in zip(trials, few, strict=True) if trial in kept)
    batches = list(islice(batches, batches_within(each)))
    weights = torch.stack([_weights(maker.found[number], call, batches) for number, _, call in kept])
    times = round_times([call for *_, call in kept], batches, weights=weights)
    return maker.options(
        [(number, runtime, row.tolist()) for (number, runtime, _), row in zip(kept, times, strict=True)]
    )


def _weights(one: Any, call: Call, batches: Sequence[Any]) -> Tensor:
    """Return the weights (B,) of the batches in the mean time of an option."""
    if one.fraction is None or any(size_of(batch) > 1 for batch in batches):
        return torch.ones(len(batches), dtype=torch.float64)
    return weights_of(torch.cat([call(batch).exit_index.cpu() for batch in batches]), one.fraction)
