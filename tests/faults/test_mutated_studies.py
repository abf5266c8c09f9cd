"""Fault 6: a thousand changed studies are valid and can be planned, or are refused in one line."""

from __future__ import annotations

import copy
import datetime
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_study import ROOT, TINY, run

from ztw.errors import ZtwError
from ztw.study.config import check_study, read_config

STUDIES = [TINY, *(ROOT / "config" / f"{name}.yaml" for name in ("quick", "paper", "ablations", "systems"))]
STUDIES.append(ROOT / "examples/numpy_logits.yaml")
BASES = [yaml.safe_load(path.read_text()) for path in STUDIES]
EXAMPLES, TEXTS, DRY_RUNS = 850, 150, 4  # a thousand studies in total
SLOWEST = 5.0  # seconds for one check, on a busy machine

Path_ = tuple[str | int, ...]


def places(value: Any, path: Path_ = ()) -> list[Path_]:
    """List the paths of all values in a study."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def at(value: Any, path: Path_) -> Any:
    for key in path:
        value = value[key]
    return value


WORDS = sorted(
    {str(key) for base in BASES for place in places(base) for key in place if isinstance(key, str)}
)
WORDS += ["joint", "layer_wise", "boosted", "resnet20", "torchvision/resnet50", "imagenet", "cifar10", "file"]
WORDS += [
    "validation",
    "test",
    "auto",
    "every 3",
    "max",
    "null",
    "1e-3",
    "../x",
    "-n",
    "a b",
    "a\nb",
    "é",
    "",
    "'",
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([0.0, 0.05, 0.5, 1.0, -1.0, 1e300, math.inf, math.nan, 2**70]),
    st.sampled_from(WORDS),
    st.text(max_size=6),
    st.just(datetime.date(2024, 1, 1)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.integers(0, 3), st.none()), inner, max_size=3),
    ),
    max_leaves=4,
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Return a study with one to four changes: values are removed, replaced, copied from another place or added."""
    study = copy.deepcopy(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        place = draw(st.sampled_from(places(study)[1:] or [()]))
        if not place:
            break
        holder, key = at(study, place[:-1]), place[-1]
        match draw(st.sampled_from(["lose", "replace", "copy", "add"])):
            case "lose":
                del holder[key]
            case "replace":
                holder[key] = draw(VALUES)
            case "copy":
                source = draw(st.sampled_from(BASES))
                holder[key] = copy.deepcopy(at(source, draw(st.sampled_from(places(source)[1:]))))
            case "add" if isinstance(holder, dict):
                holder[draw(st.sampled_from(WORDS))] = draw(VALUES)
            case "add":
                holder.append(draw(VALUES))
    return study


@st.composite
def scrambled(draw: st.DrawFn) -> bytes:
    """Return the text of a study with some bytes removed, added or repeated."""
    text = draw(st.sampled_from([path.read_bytes() for path in STUDIES]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 40)))
        new = draw(
            st.one_of(st.binary(max_size=4), st.sampled_from([b"\t", b": ", b"- ", b"&a ", b"*a", b"{"]))
        )
        text = text[:start] + new + draw(st.sampled_from([b"", text[start:end] * 2])) + text[end:]
    return text


class Checked:
    """Count valid and refused studies, and keep the valid ones."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.valid: list[Any] = []
        self.slowest = 0.0

    def check(self, read: Any) -> None:
        """Check a study. It must be valid or raise a one-line ZtwError, within SLOWEST seconds."""
        began = time.monotonic()
        try:
            config = read()
            check_study(config)
        except ZtwError as error:
            message = str(error)
            assert message.strip()
            assert "\n" not in message, message
            assert "Traceback" not in message
            self.counts["refused"] += 1
        else:
            self.counts["valid"] += 1
            self.valid.append(config)
        took = time.monotonic() - began
        assert took < SLOWEST, f"{took:.1f} s"
        self.slowest = max(self.slowest, took)


@pytest.fixture(scope="module")
def checked() -> Checked:
    return Checked()


MANY = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def test_a_mutated_study_is_valid_or_refused_in_one_line(checked):
    @settings(MANY, max_examples=EXAMPLES)
    @given(mutated())
    def check(study: Any) -> None:
        checked.check(lambda: study)

    check()


def test_a_scrambled_file_is_valid_or_refused_in_one_line(checked, tmp_path):
    file = tmp_path / "study.yaml"

    @settings(MANY, max_examples=TEXTS)
    @given(scrambled())
    def check(text: bytes) -> None:
        file.write_bytes(text)
        checked.check(lambda: read_config(file))

    check()


def test_a_valid_study_can_be_planned(checked, data_root, tmp_path, tell):
    """Plan a sample of the valid studies with `reproduce CONFIG -- -n`."""
    different = {yaml.safe_dump(study): study for study in checked.valid if study not in BASES}
    step = max(1, len(different) // DRY_RUNS)
    sample = list(different)[::step][:DRY_RUNS]
    assert sample
    for number, text in enumerate(sample):
        file: Path = tmp_path / f"study{number}.yaml"
        file.write_text(text)
        planned = run(tmp_path, file, "--", "-n", "--quiet")
        assert planned.returncode == 0, text + planned.stdout + planned.stderr
    counts = checked.counts
    tell(
        "6 mutated studies",
        f"{sum(counts.values())} checked, {len(sample)} valid ones planned by Snakemake",
        f"{counts['valid']} valid, {counts['refused']} refused in one line, the slowest in {checked.slowest:.2f} s",
    )
