"""The contract of every part, built in or of one's own: `check_rule("margin")` raises where one breaks it.

Each check takes the name of a part, raises ZtwError, one line that names the part and what it violates, and leaves
PyTorch's random state alone.
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
from ztw.exits.rules import RULES, ExitRule, ThresholdRule, exit_rule, exit_scores
from ztw.exits.sweep import simulate_exits, sweep
from ztw.exits.thresholds import THRESHOLDS, at, candidates
from ztw.models.architectures import BACKBONES, build_backbone
from ztw.models.backbone import Backbone
from ztw.models.heads import HEADS, HeadOptions
from ztw.models.network import EarlyExitNetwork

CLOSE = 1e-4  # batch size changes the last bits of an answer
APART = (0.0, 1.0, 10.0, 30.0, 100.0, 1e3, 1e4)  # how far a confident exit's logits lie apart
RAISES = (0.0, *(2.0**power for power in range(-2, 8)), 1e3, 1e4)  # what is added to the largest
HEAD_SHAPES: tuple[tuple[int, ...], ...] = ((16, 9, 9), (8, 1, 1))  # of feature maps


def check_registered() -> None:
    """Check all parts of a user's own; data sets are checked as they are read."""
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
    """A rule: scores of each sample by itself, finite however confident it is, NaN refused, its own grid from one end
    to the other, no exit delayed by a raised confidence, and `infer`, `sweep` and `simulate_exits` at one, sample by
    sample, at batch sizes 1, 7, 16 and 0."""
    kind = exit_rule(name)
    with _checked("rule", name, RULES):
        logits, labels = draw(samples=60)
        scores = exit_scores(logits, kind)
        _require(scores.shape == logits.shape[:2], f"score gives {tuple(scores.shape[1:])}, must be (N,)")
        _require(not bool(scores.isnan().any()), "score gives NaN")
        for rows in (slice(0, 0), slice(0, 1), slice(20, 50)):
            _same(
                scores[:, rows],
                exit_scores(logits[:, rows], kind),
                "score depends on which samples are in the batch",
            )
        if issubclass(kind, ThresholdRule):
            _require_refusal(lambda: kind(math.nan), "a threshold of NaN is not refused")
        cost = torch.arange(1.0, len(logits) + 1, dtype=torch.float64)
        curve = sweep(logits, labels, cost, name, points=50)
        _require(
            curve.parameter.dtype == torch.float64, f"grid gives {curve.parameter.dtype}, must be float64"
        )
        rising = bool(curve.cost.diff().ge(-1e-9).all())
        _require(rising, "grid does not run from the cheapest to the most cautious parameter")
        _require(curve.exit_fraction[0, 0] == 1, "at the first parameter of its grid not all leave at exit 1")
        _require(curve.exit_fraction[-1, -1] == 1, "at the last parameter of its grid not all run to the end")
        _check_confident(kind, logits)
        _check_raised(kind, logits)
    with torch.random.fork_rng(devices=[]):
        check_agreement(*_toy(samples=16), name)


def _check_confident(kind: type[ExitRule], logits: Tensor) -> None:
    """Whether scores are finite on logits from 0 to 1e4 apart: one class ahead, or each of the classes."""
    exits, _, num_classes = logits.shape
    shapes = torch.stack([torch.eye(num_classes)[0], torch.linspace(0, 1, num_classes)])
    for apart, top in product(APART, (0.0, 1e4)):
        rows = apart * (shapes - 1) + top
        for score in exit_scores(rows.expand(exits, -1, -1), kind).flatten().tolist():
            where = f"from {top - apart:g} to {top:g}"
            _require(math.isfinite(score), f"score is {score} on logits {where}, must be finite")


def _check_raised(kind: type[ExitRule], logits: Tensor) -> None:
    """Whether no sample leaves later, at any parameter of the rule's grid, as its largest logit is raised.

    All exits have the same logits, so that a rule with a state may compare them or add them up. What rounding can
    change is let pass.
    """
    exits, rows = len(logits), logits.flatten(0, 1)
    top = F.one_hot(rows.argmax(-1), rows.shape[-1])
    raised = [(rows + by * top).expand(exits, -1, -1) for by in RAISES]
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
                f"a raised confidence delays an exit: at {parameter:g} a sample leaves at exit {now} instead of"
                f" {then} once its largest logit is raised by {RAISES[by]:g}"
            )


def _first_passed(scores: Tensor, bounds: Tensor) -> Tensor:
    """The first exit (R, N) whose score (R, K - 1, N) passes its bound (K - 1, 1); the last takes the rest."""
    passes = F.pad((scores > bounds).to(torch.uint8), (0, 0, 0, 1), value=1)
    return passes.argmax(1)


def check_ensemble(name: str) -> None:
    """An ensemble: normalised, finite, of exits so far and each sample alone; exit by exit what it is all at once,
    also where samples leave and others join; NaN and other shapes refused; and saved, it is what it was."""
    for include_final in (True, False):
        with _checked("ensemble", name, ENSEMBLES):
            _check_ensemble(name, include_final)


def _check_ensemble(name: str, include_final: bool) -> None:
    logits, labels = draw(samples=60)
    ensemble = fit_ensemble(logits, labels, name, include_final)
    answers = ensemble(logits)
    _require(answers.shape == logits.shape, f"answers {tuple(answers.shape)}, must be {tuple(logits.shape)}")
    _require(answers.dtype == torch.float32, f"answers {answers.dtype}, must be float32")
    _same(answers.logsumexp(-1), torch.zeros(logits.shape[:2]), "its log-probabilities are not normalised")
    masked = logits.clone()
    masked[:, :, 0] = torch.finfo(logits.dtype).min
    _require(bool(ensemble(masked).isfinite().all()), "a probability of 0 makes its answer infinite or NaN")
    for rows in (slice(0, 1), slice(20, 50)):
        _same(
            answers[:, rows], ensemble(logits[:, rows]), "an answer depends on which samples are in the batch"
        )
    for exit in range(1, len(logits)):
        changed = logits.clone()
        changed[exit:] = changed[exit:].flip(-1)
        _same(answers[:exit], ensemble(changed)[:exit], f"exit {exit} sees exits after it")
    _check_exit_by_exit(ensemble, logits, answers)
    broken = logits.clone()
    broken[-1, 3, 2] = math.nan
    _require_refusal(lambda: ensemble(broken), "logits that are NaN are not refused")
    _require_refusal(lambda: ensemble(logits[1:]), "logits of another number of exits are not refused")
    if not include_final:
        _same(answers[-1], logits[-1].log_softmax(-1), "the last exit does not answer for itself")
    macs = [ensemble.macs(exit) for exit in range(len(logits))]
    _require(all(0 <= value < math.inf for value in macs), f"macs {macs}, must be at least 0 and finite")
    again = build_ensemble(name, ensemble.exits, ensemble.num_classes, include_final)
    again.load_state_dict(ensemble.state_dict())
    _same(answers, again(logits), "what is fitted is not in its state_dict: use register_buffer")


def _check_exit_by_exit(ensemble: Ensemble, logits: Tensor, answers: Tensor) -> None:
    """As `infer` computes it: two microbatches, of which the first loses samples before they join."""
    message = "exit by exit (`start`) it answers otherwise than all at once"
    half = logits.shape[1] // 2
    parts = [torch.arange(half), torch.arange(half, logits.shape[1])]
    first, second = running = [ensemble.start(len(rows), logits.device) for rows in parts]
    for exit in range(2):
        for one, rows in zip(running, parts, strict=True):
            _same(answers[exit, rows], one.append(exit, logits[exit, rows]).log_softmax(-1), message)
    stay = torch.arange(0, half, 2)
    first.select(stay)
    first.join([second])
    rows = torch.cat([stay, parts[1]])
    for exit in range(2, len(logits)):
        _same(answers[exit, rows], first.append(exit, logits[exit, rows]).log_softmax(-1), message)
    nobody = ensemble.start(0, logits.device)
    for exit in range(len(logits)):
        found = nobody.append(exit, logits[exit, :0])
        _require(found.shape == (0, logits.shape[2]), "an empty batch does not get an empty answer")


def check_head(name: str, shapes: Sequence[tuple[int, ...]] = HEAD_SHAPES, **options: Any) -> None:
    """A head, on features of these shapes: float32 logits (N, classes) with and without the previous exit's, each
    sample by itself, and gradients for every parameter. options: see `HeadOptions`."""
    for shape, previous, size in product(shapes, (0, 5), (32, 64)):
        with _checked("head", name, HEADS), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head, what = HEADS[name](shape, 5, previous, size, HeadOptions(**options)), f"features {shape}"
            _require(isinstance(head, nn.Module), f"{what}: gives {type(head).__name__}, must be a module")
            given = [torch.randn(3, *shape), *([torch.randn(3, 5)] if previous else [])]
            out = head(*(tensor.clone() for tensor in given))
            _require(
                out.shape == (3, 5) and out.dtype == torch.float32,
                f"{what}: logits {out.dtype} {tuple(out.shape)}, must be float32 (N, classes)",
            )
            out.sum().backward()
            blind = [
                key for key, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()
            ]
            _require(not blind, f"{what}: no finite gradient for {', '.join(blind)}")
            head.eval()
            with torch.no_grad():
                together = head(*(tensor.clone() for tensor in given))
                alone = head(*(tensor[1:2].clone() for tensor in given))
            _same(together[1:2], alone, f"{what}: logits depend on which samples are in the batch")


def check_thresholds(name: str, rules: Iterable[str] = ("max_softmax", "entropy")) -> None:
    """A choice of thresholds: float64 candidates from the cheapest to the most cautious, for all exits or one each,
    which mean the same to `sweep` and `simulate_exits`; NaN logits refused."""
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
            _require(rising, "candidates do not run from the cheapest to the most cautious")
            for index in (0, count // 2, count - 1):
                mean = cost[simulate_exits(logits, at(rule, found, index))[0]].mean()
                _same(
                    mean,
                    curve.cost[index],
                    "a candidate means another thing to `simulate_exits` than to `sweep`",
                )
            broken = logits.clone()
            broken[-1, 3, 2] = math.nan
            message = "logits that are NaN are not refused"
            _require_refusal(lambda rule=rule, b=broken: candidates(name, b, labels, cost, rule), message)


def check_backbone(name: str, size: int = 32, channels: int = 3) -> None:
    """A backbone, on images of this size: as many stages as it says, which together with the classifier are what it
    answers, float32 logits (N, classes), each sample by itself."""
    with _checked("backbone", name, BACKBONES), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = max(size, own("backbone").get(name, {}).get("smallest_image", 1))
        backbone = build_backbone(name, num_classes=7, channels=channels, size=size)
        _require(isinstance(backbone, Backbone), f"gives {type(backbone).__name__}, must be a Backbone")
        stages = len(backbone.stages)
        _require(stages == blocks(name), f"has {stages} stages, must be its {blocks(name)} blocks")
        _require(backbone.arch == name, f"calls itself {backbone.arch!r}, must be {name!r}")
        shape = (channels, size, size)
        _require(
            tuple(backbone.input_shape) == shape, f"is for images {backbone.input_shape}, must be {shape}"
        )
        backbone.eval()
        images = torch.randn(2, *shape)
        with torch.no_grad():
            features = list(backbone.features(images))
            answer = backbone(images)
            composed, alone = backbone.classifier(features[-1]), backbone(images[1:])
        shapes = [tuple(feature.shape[1:]) for feature in features]
        _require(
            shapes == list(map(tuple, backbone.feature_shapes)),
            f"its stages give {shapes}, must be {backbone.feature_shapes}",
        )
        _require(
            answer.shape == (2, 7) and answer.dtype == torch.float32,
            f"logits {answer.dtype} {tuple(answer.shape)}, must be float32 (N, classes)",
        )
        _same(answer, composed, "its answer is not the classifier's of its last stage")
        _same(answer[1:], alone, "an answer depends on which samples are in the batch")


def check_dataset(name: str) -> None:
    """A data set of one's own, or a built-in one without files: images and labels as its facts say. Reads it."""
    with _checked("data set", name, DATASETS), tempfile.TemporaryDirectory() as scratch:
        facts = DATASETS[name]
        splits = DECODERS[name](name, facts, Path(scratch), lambda text: None)
        for split in ("train", "test"):
            shape = (facts.channels, facts.size, facts.size)
            _require(splits[split].shape == shape, f"{split}: {splits[split].shape}, must be {shape}")


def check_agreement(network: EarlyExitNetwork, images: Tensor, rule: str) -> None:
    """Raise ZtwError unless `infer` of a network in eval mode leaves every sample where `sweep` and `simulate_exits`
    say, at batch sizes 0, 1, 7 and all, with the same answer; at parameters that no score lies on."""
    kind: Any = exit_rule(rule)
    with torch.no_grad():
        logits = network(images)
        answers = network.ensemble(logits) if network.ensemble else logits
    seen = set[int]()
    with _checked("rule", rule, RULES):
        for parameters in _apart(exit_scores(answers, kind), kind):
            decided = [simulate_exits(answers, kind(parameter)) for parameter in parameters.tolist()]
            _check_swept(answers, rule, parameters, decided)
            for parameter, (left, answering) in zip(parameters.tolist(), decided, strict=True):
                expected = answers[answering, torch.arange(len(images))]
                for size in (1, 7, len(images)):
                    results = [network.infer(part, kind(parameter)) for part in images.split(size)]
                    exits = torch.cat([result.exit_index for result in results])
                    given = torch.cat([result.logits for result in results])
                    where = f"at {parameter}, in batches of {size}, `infer`"
                    _require(
                        exits.tolist() == left.tolist(),
                        f"{where} has samples leave where `simulate_exits` has not",
                    )
                    _same(expected, given, f"{where} does not answer as the exit that was decided on")
                seen |= set(left.tolist())
            nobody = network.infer(images[:0], kind(parameters.tolist()[0]))
            _require(nobody.exit_index.shape == (0,), "`infer` of no images is not empty")
        _require(
            len(seen) >= min(3, len(answers)), f"samples leave at {len(seen)} of {len(answers)} exits only"
        )


def _check_swept(
    answers: Tensor, rule: str, parameters: Tensor, decided: Sequence[tuple[Tensor, Tensor]]
) -> None:
    """Whether `sweep` lets each sample leave where `simulate_exits` does, and takes the same answer."""
    cost = torch.arange(1.0, len(answers) + 1, dtype=torch.float64)
    for n in range(answers.shape[1]):
        label = torch.tensor([n % answers.shape[2]])
        curve = sweep(answers[:, n : n + 1], label, cost, rule, parameters)
        for row, (left, answering) in enumerate(decided):
            right = bool(answers[answering[n], n].argmax() == label)
            agree = curve.exit_fraction[row, left[n]] == 1 and bool(curve.accuracy[row]) == right
            _require(bool(agree), f"at {parameters[row].tolist()} `sweep` and `simulate_exits` disagree")


def _apart(scores: Tensor, kind: Any) -> list[Tensor]:
    """Parameters no score lies on, for batch size changes the last bits of one: shared (T,), per exit (T, K - 1)."""
    if not issubclass(kind, ThresholdRule):
        return [kind.grid(scores, 20)]
    beyond = torch.tensor([float(scores.min()) - 1, float(scores.max()) + 1], dtype=torch.float64)
    shared = torch.cat([beyond[:1], _between(scores, 5), beyond[1:]])
    per_exit = torch.stack([_between(score, 3).roll(exit) for exit, score in enumerate(scores[:-1])], dim=1)
    return [kind.thresholds(shared), kind.thresholds(per_exit)]


def _between(scores: Tensor, points: int) -> Tensor:
    """Values midway between two scores."""
    values = scores.flatten().unique()
    middle = ((values[1:] + values[:-1]) / 2)[values.diff() > 2e-5]
    _require(len(middle) > 0, "its scores are all the same: no sample could be told from another")
    return middle[torch.linspace(0, len(middle) - 1, points).long()]


def draw(samples: int, exits: int = 4, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits (K, N, C) of exits that know more the later they are, and labels (N,): always the same."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % num_classes
    easy = 1.5 * torch.randn(samples, generator=generator)
    logits = torch.randn(exits, samples, num_classes, generator=generator)
    logits[:, torch.arange(samples), labels] += 1 + 0.8 * torch.arange(exits)[:, None] + easy
    return 1.5 * logits, labels


def _toy(samples: int) -> tuple[EarlyExitNetwork, Tensor]:
    """A network of four exits on images of 30 pixels, its answers diverse and confident, and images."""
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
    """What a part violates."""


@contextlib.contextmanager
def _checked(kind: str, name: str, known: Collection[str]) -> Iterator[None]:
    """Whatever goes wrong is told in one line that names the part; an unknown name first of all."""
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


def _require_refusal(call: Any, message: str) -> None:
    try:
        call()
    except ZtwError:
        return
    raise _BrokenError(message)
