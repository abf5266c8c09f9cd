"""Contract tests for your own exit rules, ensembles, heads, ways to choose thresholds, backbones and data sets.

Call a check with the name of a registered or built-in part, e.g. `check_rule("margin")`. If the part breaks the
contract, the check raises ZtwError. The message is one line with the name and the problem. PyTorch's random state does
not change.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ztw.catalogue.architectures import blocks
from ztw.catalogue.datasets import DATASETS
from ztw.catalogue.parts import PARTS, own
from ztw.data.decode import DECODERS
from ztw.errors import ZtwError, unknown
from ztw.exits.ensembles import ENSEMBLES, Ensemble, build_ensemble, fit_ensemble
from ztw.exits.fitted_base import FittedRule
from ztw.exits.rules import RULES, ExitRule, ThresholdRule, exit_rule, exit_scores, fit_rule
from ztw.exits.sweep import simulate_exits, sweep
from ztw.exits.thresholds import THRESHOLDS, at, candidates
from ztw.models.architectures import BACKBONES, build_backbone
from ztw.models.backbone import Backbone
from ztw.models.heads import HEADS, HeadOptions
from ztw.models.network import EarlyExitNetwork

CLOSE = 1e-4  # tolerance, because the batch size changes the last bits of logits
GAPS = (0.0, 1.0, 10.0, 30.0, 100.0, 1e3, 1e4)  # between the logits of an exit
INCREASES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 1e3, 1e4)  # of the largest logit
HEAD_CLASSES = 5
# Features of the check of a head: (C, H, W); and logits, for a head that refuses maps
HEAD_SHAPES: tuple[tuple[int, ...], ...] = ((16, 9, 9), (8, 1, 1))
LOGITS_SHAPES = ((HEAD_CLASSES,),)


def check_registered() -> None:
    """Check all registered parts. Data sets are checked when they are read."""
    checks = {
        "rule": check_rule,
        "ensemble": check_ensemble,
        "head": check_head,
        "thresholds": check_thresholds,
        "backbone": check_backbone,
    }
    for kind, name in list(PARTS):
        if kind in checks:
            checks[kind](name)


def check_rule(name: str) -> None:
    """Check an exit rule; raise ZtwError if it breaks the contract.

    - A sample's score depends on this sample only. It is finite for all finite logits.
    - A threshold of NaN raises ZtwError.
    - `grid` is float64 and runs from the cheapest parameter to the most expensive. At the first parameter, all samples
      leave at the first exit. At the last, no sample leaves early.
    - A higher confidence never delays an exit.
    - `infer`, `sweep` and `simulate_exits` agree for every sample, at batch sizes 0, 1, 7 and 16.
    - A `FittedRule` is fitted to example logits first. It has finite parameters, the same at every fit.
    """
    kind = exit_rule(name)
    with _checked("rule", name, RULES):
        logits, labels = draw(samples=60)
        if issubclass(kind, FittedRule):
            kind = fit_rule(logits, labels, name)
            _require(fit_rule(logits, labels, name) is kind, "two fits give other parameters")
        scores = exit_scores(logits, kind)
        _require(
            scores.shape == logits.shape[:2], f"scores have shape {tuple(scores.shape[1:])}, must be (N,)"
        )
        _require(not bool(scores.isnan().any()), "some scores are NaN")
        for rows in (slice(0, 0), slice(0, 1), slice(20, 50)):
            _same(
                scores[:, rows],
                exit_scores(logits[:, rows], kind),
                "scores depend on the other samples of the batch",
            )
        if issubclass(kind, ThresholdRule):
            _require_error(lambda: kind(math.nan), "a threshold of NaN must raise ZtwError")
        cost = torch.arange(1.0, len(logits) + 1, dtype=torch.float64)
        curve = sweep(logits, labels, cost, kind, points=50)
        _require(curve.parameter.dtype == torch.float64, f"grid has {curve.parameter.dtype}, must be float64")
        rising = bool(curve.cost.diff().ge(-1e-9).all())
        _require(rising, "grid must run from the cheapest to the most expensive parameter")
        _require(
            curve.exit_fraction[0, 0] == 1, "all samples must leave at exit 1 at the first value of grid"
        )
        _require(curve.exit_fraction[-1, -1] == 1, "no sample may leave early at the last value of grid")
        _check_confident(kind, logits)
        _check_raised(kind, logits)
    with torch.random.fork_rng(devices=[]):
        check_agreement(*_toy(samples=16), name)


def _check_confident(kind: type[ExitRule], logits: Tensor) -> None:
    """Require finite scores for logits with gaps of 0 to 1e4: one class far above the others, or all far apart."""
    exits, _, num_classes = logits.shape
    shapes = torch.stack([torch.eye(num_classes)[0], torch.linspace(0, 1, num_classes)])
    for apart, top in product(GAPS, (0.0, 1e4)):
        rows = apart * (shapes - 1) + top
        for score in exit_scores(rows.expand(exits, -1, -1), kind).flatten().tolist():
            where = f"from {top - apart:g} to {top:g}"
            _require(math.isfinite(score), f"score is {score} on logits {where}, must be finite")


def _check_raised(kind: type[ExitRule], logits: Tensor) -> None:
    """Require that a sample never leaves later if its largest logit is raised, apart from rounding.

    All exits get the same logits, because a rule with a state may compare or add exits.
    """
    exits, rows = len(logits), logits.flatten(0, 1)
    top = F.one_hot(rows.argmax(-1), rows.shape[-1])
    raised = [(rows + by * top).expand(exits, -1, -1) for by in INCREASES]
    scores = torch.stack([exit_scores(of_one, kind) for of_one in raised])  # (R, K, N)
    near = 1e-5 * (scores[0].abs().max() + scores.abs())
    for parameter in kind.grid(scores.transpose(0, 1).flatten(1), 50).tolist():
        bounds: Tensor = kind(parameter).bounds(exits)[:, None]  # type: ignore[call-arg]
        sure, possible = (_first_passed(scores[:, :-1] + sign * near[:, :-1], bounds) for sign in (-1, 1))
        late = (possible[1:] > sure.cummin(0).values[:-1]).nonzero()
        if len(late):
            by, sample = int(late[0, 0]) + 1, int(late[0, 1])
            then, now = int(sure[:by, sample].min()) + 1, int(possible[by, sample]) + 1
            raise _BrokenError(
                f"a higher confidence delays an exit: at {parameter:g} a sample leaves at exit {now} instead of"
                f" {then} if its largest logit is raised by {INCREASES[by]:g}"
            )


def _first_passed(scores: Tensor, bounds: Tensor) -> Tensor:
    """Return the first exit (R, N) whose score (R, K - 1, N) passes its bound (K - 1, 1), else the last exit."""
    passes = F.pad((scores > bounds).to(torch.uint8), (0, 0, 0, 1), value=1)
    return passes.argmax(1)


def check_ensemble(name: str) -> None:
    """Check an ensemble; raise ZtwError if it breaks the contract.

    - A sample's log-probabilities are finite and normalised. They depend on this sample only, and not on later exits.
    - Exit by exit, with samples that leave and join, the ensemble computes the same values as at once.
    - Logits with NaN, or of another number of exits, raise ZtwError.
    - A saved and loaded ensemble computes the same values.
    - With include_final=False, the last exit predicts alone.
    - `macs` is finite and at least 0.
    """
    for include_final in (True, False):
        with _checked("ensemble", name, ENSEMBLES):
            _check_ensemble(name, include_final)


def _check_ensemble(name: str, include_final: bool) -> None:
    logits, labels = draw(samples=60)
    ensemble = fit_ensemble(logits, labels, name, include_final)
    log_probs = ensemble(logits)
    shape = tuple(log_probs.shape)
    _require(log_probs.shape == logits.shape, f"log-probabilities {shape}, must be {tuple(logits.shape)}")
    _require(log_probs.dtype == torch.float32, f"log-probabilities are {log_probs.dtype}, must be float32")
    _same(log_probs.logsumexp(-1), torch.zeros(logits.shape[:2]), "log-probabilities are not normalised")
    masked = logits.clone()
    masked[:, :, 0] = torch.finfo(logits.dtype).min
    _require(
        bool(ensemble(masked).isfinite().all()),
        "a probability of 0 gives log-probabilities that are not finite",
    )
    for rows in (slice(0, 1), slice(20, 50)):
        message = "log-probabilities depend on the other samples of the batch"
        _same(log_probs[:, rows], ensemble(logits[:, rows]), message)
    for exit in range(1, len(logits)):
        changed = logits.clone()
        changed[exit:] = changed[exit:].flip(-1)
        _same(log_probs[:exit], ensemble(changed)[:exit], f"exit {exit} depends on later exits")
    _check_exit_by_exit(ensemble, logits, log_probs)
    broken = logits.clone()
    broken[-1, 3, 2] = math.nan
    _require_error(lambda: ensemble(broken), "logits with NaN must raise ZtwError")
    _require_error(lambda: ensemble(logits[1:]), "logits of another number of exits must raise ZtwError")
    if not include_final:
        _same(
            log_probs[-1],
            logits[-1].log_softmax(-1),
            "without include_final the last exit must predict alone",
        )
    macs = [ensemble.macs(exit) for exit in range(len(logits))]
    _require(all(0 <= value < math.inf for value in macs), f"macs {macs}, must be at least 0 and finite")
    again = build_ensemble(name, ensemble.exits, ensemble.num_classes, include_final)
    again.load_state_dict(ensemble.state_dict())
    _same(log_probs, again(logits), "its state_dict lacks fitted values; use register_buffer")


def _check_exit_by_exit(ensemble: Ensemble, logits: Tensor, log_probs: Tensor) -> None:
    """Require the same log-probabilities exit by exit, as in `infer`: some samples leave, then others join."""
    message = "computed exit by exit (`start`), it gives other log-probabilities than at once"
    half = logits.shape[1] // 2
    parts = [torch.arange(half), torch.arange(half, logits.shape[1])]
    first, second = running = [ensemble.start(len(rows), logits.device) for rows in parts]
    for exit in range(2):
        for one, rows in zip(running, parts, strict=True):
            _same(log_probs[exit, rows], one.append(exit, logits[exit, rows]).log_softmax(-1), message)
    stay = torch.arange(0, half, 2)
    first.select(stay)
    first.join([second])
    rows = torch.cat([stay, parts[1]])
    for exit in range(2, len(logits)):
        _same(log_probs[exit, rows], first.append(exit, logits[exit, rows]).log_softmax(-1), message)
    nobody = ensemble.start(0, logits.device)
    for exit in range(len(logits)):
        found = nobody.append(exit, logits[exit, :0])
        _require(found.shape == (0, logits.shape[2]), "an empty batch must give an empty result")


def check_head(name: str, shapes: Sequence[tuple[int, ...]] | None = None, **options: Any) -> None:
    """Check a head; raise ZtwError if it breaks the contract.

    - It computes float32 logits (N, classes). In eval mode, a sample's logits depend on this sample only.
    - Every parameter gets a finite gradient.
    - Both hold with and without the logits of a previous exit.

    A head may refuse features, and the logits of a previous exit, with a ZtwError, but not all of them.

    Args:
        name: name of the head.
        shapes: shapes of the features, without the batch axis. None = two maps; logits for a head that refuses maps.
        options: see `ztw.models.heads.HeadOptions`.
    """
    for some in [HEAD_SHAPES, LOGITS_SHAPES] if shapes is None else [shapes]:
        cases = list(product(some, (0, HEAD_CLASSES), (32, 64)))
        refused = [error for case in cases if (error := _check_head(name, *case, options)) is not None]
        if len(refused) < len(cases):
            return
    raise ZtwError(f"head {name!r}: refuses all features ({refused[0]})")


def _check_head(
    name: str, shape: tuple[int, ...], previous: int, size: int, given_options: dict[str, Any]
) -> ZtwError | None:
    """Check a head on features of one shape; return the error with which it refuses them."""
    with _checked("head", name, HEADS), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        what, options = f"features {shape}", HeadOptions(**given_options)
        try:
            head = HEADS[name](shape, HEAD_CLASSES, previous, size, options)
        except ZtwError as error:
            return error
        _require(isinstance(head, nn.Module), f"{what}: returns {type(head).__name__}, must be a module")
        given = [torch.randn(3, *shape, requires_grad=True), *([torch.randn(3, 5)] if previous else [])]
        out = head(*(tensor.clone() for tensor in given))
        _require(
            out.shape == (3, 5) and out.dtype == torch.float32,
            f"{what}: logits {out.dtype} {tuple(out.shape)}, must be float32 (N, classes)",
        )
        out.sum().backward()
        blind = [key for key, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        _require(not blind, f"{what}: no finite gradient for {', '.join(blind)}")
        head.eval()
        with torch.no_grad():
            together = head(*(tensor.clone() for tensor in given))
            alone = head(*(tensor[1:2].clone() for tensor in given))
        _same(together[1:2], alone, f"{what}: logits depend on the other samples of the batch")
    return None


def check_thresholds(name: str, rules: Iterable[str] = ("max_softmax", "entropy")) -> None:
    """Check a way to choose thresholds; raise ZtwError if it breaks the contract.

    - Candidates are float64, for all exits or one per exit but the last, from the cheapest to the most expensive.
    - `sweep` and `simulate_exits` agree about the candidates.
    - Logits with NaN raise ZtwError.

    Args:
        name: name of the way to choose thresholds.
        rules: names of exit rules.
    """
    logits, labels = draw(samples=200)
    cost = 2.0 ** torch.arange(len(logits), dtype=torch.float64)
    for rule in rules:
        with _checked("thresholds", name, THRESHOLDS):
            found = candidates(name, logits, labels, cost, rule, points=100)
            count, shape = len(found.parameter), tuple(found.thresholds.shape)
            for what in ("parameter", "thresholds"):
                dtype = getattr(found, what).dtype
                _require(dtype == torch.float64, f"{what} is {dtype}, must be float64")
            shapes = [(count,), (count, len(cost) - 1)]
            _require(
                found.parameter.dim() == 1 and count > 0 and shape in shapes,
                f"parameter {tuple(found.parameter.shape)}, thresholds {shape}, must be (T,) and (T,) or (T, K - 1)",
            )
            _require(not bool(found.thresholds.isnan().any()), "a threshold is NaN")
            curve = sweep(logits, labels, cost, rule, found.thresholds)
            rising = bool(curve.cost.diff().ge(-1e-9).all())
            _require(rising, "candidates must run from the cheapest to the most expensive")
            for index in (0, count // 2, count - 1):
                mean = cost[simulate_exits(logits, at(rule, found, index))[0]].mean()
                _same(mean, curve.cost[index], "`simulate_exits` and `sweep` disagree about a candidate")
            broken = logits.clone()
            broken[-1, 3, 2] = math.nan
            message = "logits with NaN must raise ZtwError"
            _require_error(lambda rule=rule, b=broken: candidates(name, b, labels, cost, rule), message)


def check_backbone(name: str, size: int = 32, channels: int = 3) -> None:
    """Check a backbone; raise ZtwError if it breaks the contract.

    - It has the registered name and number of blocks, and correct `input_shape` and `feature_shapes`.
    - It computes float32 logits (N, classes). In eval mode, a sample's logits depend on this sample only.
    - Its classifier, applied to the last stage's output, gives the same logits.

    Args:
        name: name of the backbone.
        size: side of the images in pixels, raised to the backbone's smallest.
        channels: number of image channels.
    """
    with _checked("backbone", name, BACKBONES), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = max(size, own("backbone").get(name, {}).get("smallest_image", 1))
        backbone = build_backbone(name, num_classes=7, channels=channels, size=size)
        _require(isinstance(backbone, Backbone), f"returns {type(backbone).__name__}, must be a Backbone")
        stages = len(backbone.stages)
        _require(stages == blocks(name), f"has {stages} stages, must be {blocks(name)}, its number of blocks")
        _require(backbone.arch == name, f"arch is {backbone.arch!r}, must be {name!r}")
        shape = (channels, size, size)
        _require(
            tuple(backbone.input_shape) == shape, f"input_shape is {backbone.input_shape}, must be {shape}"
        )
        backbone.eval()
        images = torch.randn(2, *shape)
        with torch.no_grad():
            features = list(backbone.features(images))
            logits = backbone(images)
            composed, alone = backbone.classifier(features[-1]), backbone(images[1:])
        shapes = [tuple(feature.shape[1:]) for feature in features]
        _require(
            shapes == list(map(tuple, backbone.feature_shapes)),
            f"its stages return {shapes}, must be {backbone.feature_shapes}",
        )
        _require(
            logits.shape == (2, 7) and logits.dtype == torch.float32,
            f"logits {logits.dtype} {tuple(logits.shape)}, must be float32 (N, classes)",
        )
        _same(logits, composed, "its logits are not those of its classifier on its last stage")
        _same(logits[1:], alone, "logits depend on the other samples of the batch")


def check_dataset(name: str) -> None:
    """Read a registered data set, or the built-in "digits"; raise ZtwError if its images or labels are not valid."""
    with _checked("data set", name, DATASETS), tempfile.TemporaryDirectory() as scratch:
        metadata = DATASETS[name]
        splits = DECODERS[name](name, metadata, Path(scratch), lambda text: None)
        for split in ("train", "test"):
            shape = (metadata.channels, metadata.size, metadata.size)
            _require(splits[split].shape == shape, f"{split}: {splits[split].shape}, must be {shape}")


def check_agreement(network: EarlyExitNetwork, images: Tensor, rule: str) -> None:
    """Raise ZtwError unless `infer`, `sweep` and `simulate_exits` agree about every sample's exit and prediction.

    Args:
        network: a network in eval mode.
        images: float32 (N, C, H, W). `infer` receives them in batches of 0, 1, 7 and N.
        rule: name of the exit rule. If it is fitted, it is fitted to these images, with labels that some predictions
            meet.
    """
    with torch.no_grad():
        logits = network(images)
        logits = network.ensemble(logits) if network.ensemble else logits
    seen = set[int]()
    with _checked("rule", rule, RULES):
        kind: Any = fit_rule(logits, likely_labels(logits), rule)
        for parameters in _test_parameters(exit_scores(logits, kind), kind):
            simulated = [simulate_exits(logits, kind(parameter)) for parameter in parameters.tolist()]
            _check_swept(logits, kind, parameters, simulated)
            for parameter, (left, predicting) in zip(parameters.tolist(), simulated, strict=True):
                expected = logits[predicting, torch.arange(len(images))]
                for size in (1, 7, len(images)):
                    results = [network.infer(part, kind(parameter)) for part in images.split(size)]
                    exits = torch.cat([result.exit_index for result in results])
                    given = torch.cat([result.logits for result in results])
                    where = (
                        f"at {parameter}, in batches of {size}, `infer` and `simulate_exits` disagree about"
                    )
                    _require(exits.tolist() == left.tolist(), f"{where} the exits")
                    _same(expected, given, f"{where} the logits")
                seen |= set(left.tolist())
            nobody = network.infer(images[:0], kind(parameters.tolist()[0]))
            _require(nobody.exit_index.shape == (0,), "`infer` of no images must return no results")
        _require(
            len(seen) >= min(3, len(logits)), f"samples leave only at {len(seen)} of {len(logits)} exits"
        )


def _check_swept(
    logits: Tensor, kind: type[ExitRule], parameters: Tensor, simulated: Sequence[tuple[Tensor, Tensor]]
) -> None:
    cost = torch.arange(1.0, len(logits) + 1, dtype=torch.float64)
    for n in range(logits.shape[1]):
        label = torch.tensor([n % logits.shape[2]])
        curve = sweep(logits[:, n : n + 1], label, cost, kind, parameters)
        for row, (left, predicting) in enumerate(simulated):
            correct = bool(logits[predicting[n], n].argmax() == label)
            agree = curve.exit_fraction[row, left[n]] == 1 and bool(curve.accuracy[row]) == correct
            _require(bool(agree), f"at {parameters[row].tolist()} `sweep` and `simulate_exits` disagree")


def _test_parameters(scores: Tensor, kind: Any) -> list[Tensor]:
    """Return parameters to test: shared (T,) and per exit (T, K - 1).

    No threshold equals a score, because the batch size changes the last bits of scores.
    """
    if not issubclass(kind, ThresholdRule):
        return [kind.grid(scores, 20)]
    beyond = torch.tensor([float(scores.min()) - 1, float(scores.max()) + 1], dtype=torch.float64)
    shared = torch.cat([beyond[:1], _midpoints(scores, 5), beyond[1:]])
    per_exit = torch.stack([_midpoints(score, 3).roll(exit) for exit, score in enumerate(scores[:-1])], dim=1)
    return [kind.thresholds(shared), kind.thresholds(per_exit)]


def _midpoints(scores: Tensor, points: int) -> Tensor:
    """Return `points` thresholds, each midway between two consecutive scores."""
    values = scores.flatten().unique()
    middle = ((values[1:] + values[:-1]) / 2)[values.diff() > 2e-5]
    _require(len(middle) > 0, "all scores are equal, so the rule cannot distinguish samples")
    return middle[torch.linspace(0, len(middle) - 1, points).long()]


def draw(samples: int, exits: int = 4, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    """Return example logits (K, N, C) and labels (N,), the same at every call. Later exits are more accurate."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % num_classes
    easy = 1.5 * torch.randn(samples, generator=generator)
    logits = torch.randn(exits, samples, num_classes, generator=generator)
    logits[:, torch.arange(samples), labels] += 1 + 0.8 * torch.arange(exits)[:, None] + easy
    return 1.5 * logits, labels


def likely_labels(logits: Tensor) -> Tensor:
    """Return labels (N,) for logits (K, N, C): two of three samples have the exits' common prediction."""
    number = torch.arange(logits.shape[1], device=logits.device)
    return torch.where(number % 3 == 0, number % logits.shape[2], logits.mean(0).argmax(-1))


def _toy(samples: int) -> tuple[EarlyExitNetwork, Tensor]:
    """Return a network of four exits with diverse predictions, and images (samples, 1, 5, 6)."""
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(30, 30)), nn.Linear(30, 30), nn.Linear(30, 30)]
    backbone = Backbone("toy", stages, nn.Linear(30, 5), (1, 5, 6))
    network = EarlyExitNetwork(
        backbone, [nn.Linear(30, 5) for _ in range(3)], (0, 1, 2), "independent"
    ).eval()
    images = torch.randn(samples, 1, 5, 6)
    with torch.no_grad():
        for exit, linear in enumerate([*network.heads, backbone.classifier]):
            own_logits = network(images)[exit]
            linear.weight.mul_(2.5 / own_logits.std())
    return network, images


class _BrokenError(Exception):
    """A part violates the contract."""


@contextlib.contextmanager
def _checked(kind: str, name: str, known: Collection[str]) -> Iterator[None]:
    """Convert any error to a ZtwError of one line that names the part, also for an unknown name."""
    if name not in known:
        raise unknown(kind, name, known)
    part = f"{kind} {name!r}"
    try:
        yield
    except Exception as error:
        if isinstance(error, _BrokenError):
            raise ZtwError(f"{part}: {error}") from None
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}, line {frame.lineno}"
        text = " ".join(str(error).split())[:300]
        raise ZtwError(f"{part}: {type(error).__name__}: {text} ({place})") from error


def _require(holds: bool | Tensor, message: str) -> None:
    if not holds:
        raise _BrokenError(message)


def _same(expected: Tensor, found: Tensor, message: str) -> None:
    _require(expected.shape == found.shape and torch.allclose(expected, found, CLOSE, CLOSE), message)


def _require_error(call: Any, message: str) -> None:
    try:
        call()
    except ZtwError:
        return
    raise _BrokenError(message)
