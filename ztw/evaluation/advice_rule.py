"""The decision of `advise`: which option to recommend, and in which words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ztw.evaluation.advice_option import ALTERNATIVE, CASCADE, EXITS, FIXED, MODEL, ONNX, Option, median
from ztw.exits.threshold_base import TIE

WORTH = 1.05  # the smallest speed-up that is worth a change
UNSEEN = 0.0005  # a difference that is 0.0 points, as printed
VERDICTS = {
    (MODEL, False): "Leave it as it is",
    (MODEL, True): "Quantise, no exits",
    (ALTERNATIVE, False): "Use the smaller network",
    (ALTERNATIVE, True): "Use the smaller network, in int8",
    (FIXED, False): "Cut the model",
    (FIXED, True): "Cut the model, and quantise",
    (EXITS, False): "Exits pay",
    (EXITS, True): "Exits pay, in int8",
    (CASCADE, False): "Use a cascade of models",
    (CASCADE, True): "Use a cascade of models, in int8",
}


def base_of(options: Sequence[Option]) -> Option:
    """Return the model as it is, in the runtime where it is faster."""
    own = [one for one in options if one.kind == MODEL and not one.int8 and not one.reason]
    return min(own, key=lambda option: option.ms)


def recommend(options: Sequence[Option], samples: int, allowed_loss: float) -> tuple[Option, str]:
    """Return the recommended option and the sentence.

    Of the options that lose at most `allowed_loss` of accuracy and are `faster` than the model, the fastest one; but an
    option before it in the list, which is simpler, if the fastest one is not `faster` than that.
    """
    base = base_of(options)
    others = [one for one in options if one.kind != MODEL or one.int8]
    allowed = [one for one in others if within(one, allowed_loss) and faster(one, base)]
    best = base
    if allowed:
        fastest = min(allowed, key=lambda option: option.ms)
        best = next(one for one in allowed if one is fastest or not faster(fastest, one))
    parts = [
        _verdict(best, base, allowed_loss),
        *_of_runtime(options, base),
        *_of_exits(others, best, base, allowed_loss),
        f"With {samples} held-out samples, differences below {_points(noise_of(options, samples))} are noise.",
        *_caution(best, allowed, base, allowed_loss),
        *_of_training(others),
    ]
    return best, " ".join(parts)


def within(option: Option, allowed_loss: float) -> bool:
    """Return whether an option was measured and loses at most `allowed_loss`, as measured."""
    return option.loss is not None and option.loss.difference <= allowed_loss + TIE


def faster(first: Option, second: Option) -> bool:
    """Return whether an option is faster than another one in every round, and by WORTH in the median."""
    ratios = [two / one for one, two in zip(first.round_ms, second.round_ms, strict=True)]
    return bool(ratios) and min(ratios) > 1 and median(ratios) >= WORTH


def noise_of(options: Sequence[Option], samples: int) -> float:
    """Return half the width of a typical 95 % interval of a loss: the median over the options.

    Without other options, that of the model's accuracy, by the normal approximation of the binomial distribution.
    """
    widths = sorted(
        (one.loss.high - one.loss.low) / 2 for one in options if one.loss and (one.kind != MODEL or one.int8)
    )
    if widths:
        return widths[len(widths) // 2]
    accuracy = base_of(options).accuracy
    return 1.96 * math.sqrt(accuracy * (1 - accuracy) / samples)


def _verdict(best: Option, base: Option, allowed_loss: float) -> str:
    verdict = VERDICTS[best.kind, best.int8]
    if best is base:
        return (
            f"{verdict}: no option is faster, by {100 * (WORTH - 1):.0f} % and in every round, and loses at most"
            f" {_points(allowed_loss)}."
        )
    return f"{verdict}: {_described(best, base)}."


def _described(option: Option, base: Option) -> str:
    assert option.loss is not None
    low, high = option.speed_range
    ends = (option.loss.low, option.loss.high)
    if option.loss.difference < -UNSEEN:  # a gain, with the interval of the gain
        ends = (-option.loss.high, -option.loss.low)
    where = "" if option.runtime == base.runtime else f" in {_runtime(option)}"
    return (
        f"'{option.name}'{where} is {option.speed_up:.2f} times as fast as the model ({low:.2f} to {high:.2f}) and"
        f" {_lost(option.loss.difference)} (95 %: {100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
    )


def _of_runtime(options: Sequence[Option], base: Option) -> list[str]:
    """Say that the model itself is faster in ONNX Runtime."""
    for one in options:
        if one.kind == MODEL and one.runtime != base.runtime and one.round_ms and faster(base, one):
            return [
                f"The model itself is {one.ms / base.ms:.2f} times as fast in {_runtime(base)} as in {_runtime(one)}."
            ]
    return []


def _of_exits(options: Sequence[Option], best: Option, base: Option, allowed_loss: float) -> list[str]:
    """Say what exits would do, if the recommendation is another one."""
    found = [one for one in options if one.kind == EXITS and one.round_ms]
    if best.kind == EXITS:
        rest = [one for one in options if one.kind != EXITS and within(one, allowed_loss)]
        if not rest:
            return []
        rival = min(rest, key=lambda option: option.ms)
        return [f"Without exits, the fastest within the allowed loss is {_brief(rival)}."]
    if not found:
        return ["Exits were not measured."]
    good = [one for one in found if within(one, allowed_loss)]
    one = min(good or found, key=lambda option: option.ms)
    pays = "gain nothing over that" if best is not base and good and faster(one, base) else "do not pay"
    return [f"Exits {pays}: {_brief(one)}{'' if good else ', which is too much'}."]


def _brief(option: Option) -> str:
    assert option.loss is not None
    return f"'{option.name}', {option.speed_up:.2f} times as fast, {_lost(option.loss.difference)}"


def _caution(best: Option, allowed: Sequence[Option], base: Option, allowed_loss: float) -> list[str]:
    """Say that a loss above the allowed one is possible, and which option excludes it."""

    def excludes(option: Option) -> bool:
        return option.loss is not None and option.loss.high <= allowed_loss + TIE

    if best is base or excludes(best):
        return []
    safe = [option for option in allowed if excludes(option)]
    other = "No faster option excludes it."
    if safe:
        other = f"The fastest one that excludes it is {_brief(min(safe, key=lambda option: option.ms))}."
    return [
        f"They cannot exclude that '{best.name}' loses more than {_points(allowed_loss)}: more samples would tell.",
        other,
    ]


def _of_training(others: Sequence[Option]) -> list[str]:
    """Say that a part of the model is more accurate than the model, which is then hardly trained."""
    parts = [
        one for one in others if one.kind in (FIXED, EXITS) and one.loss is not None and one.loss.high < 0
    ]
    if not parts:
        return []
    return [
        f"'{parts[0].name}' is more accurate than the whole model: check that the model is trained to the end, and that"
        " the samples have the form that it was trained on."
    ]


def _runtime(option: Option) -> str:
    return "ONNX Runtime" if option.runtime == ONNX else option.runtime


def _points(share: float) -> str:
    value = f"{100 * share:.1f}"
    return f"{value} point{'' if value == '1.0' else 's'}"


def _lost(difference: float) -> str:
    """Return a loss in words."""
    if abs(difference) <= UNSEEN:
        return "loses nothing"
    return f"{'loses' if difference > 0 else 'gains'} {_points(abs(difference))}"
