"""Fault 4: a flipped bit in any kind of file of a run is detected and reported, or the file is made again."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tiny_study import SMALL, errors, jobs_done, run, shown, tables

from ztw.errors import ZtwError
from ztw.files import check_seal, read_json
from ztw.reporting.readable import read_rows
from ztw.reporting.results import from_files, from_runs, read_curves
from ztw.tensors import read_tensors

SEED = 13
CELL = "digits/resnet8/seed0"
# File with a flipped bit -> the rule that reads it
READ_BY = {
    "data/digits/train.json": "predict",
    f"{CELL}/backbone.safetensors": "predict",
    f"{CELL}/backbone.json": "predict",
    f"{CELL}/ics/cascade_detached.safetensors": "predict",
    f"{CELL}/predictions/cascade_detached/validation.safetensors": "fit_ensembles",
    f"{CELL}/ensembles/cascade_detached/few.safetensors": "evaluate",
    f"{CELL}/curves/ztw.parquet": "plot_figures",
    f"{CELL}/metrics/ztw.json": "aggregate",
    f"{CELL}/correct/ztw.safetensors": "compare_methods",
    f"{CELL}/runs.json": "aggregate",
    f"{CELL}/latency.json": "aggregate",
    "tracking.json": "track_cell",
    "tables/differences.csv": "aggregate",
    "tables/metrics.csv": "plot_figures",
}
READERS: dict[str, Callable[[Path], Any]] = {
    ".json": read_json,
    ".safetensors": read_tensors,
    ".parquet": lambda path: read_curves([path]),
    ".csv": read_rows,
    ".md": check_seal,
    ".tex": check_seal,
}


def flip(path: Path, place: int) -> None:
    """Flip a bit without a change of the file's time, as a disk error does."""
    content, times = bytearray(path.read_bytes()), path.stat()
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_every_altered_file_is_detected_when_it_is_read(finished, tmp_path, tell):
    """All files that jobs or the screen read; not figures, report, logs, benchmarks and MLflow's copies."""
    study = shutil.copytree(
        finished / "results/tiny", tmp_path / "tiny", ignore=shutil.ignore_patterns("mlflow-artifacts")
    )
    files = [path for path in sorted(study.rglob("*.*")) if path.suffix in READERS and path.name[0] != "."]
    files.remove(study / "tables/pipeline.csv")
    assert len(files) > 25
    draw, flips = random.Random(SEED), 0
    for path in files:
        size, read = path.stat().st_size, READERS[path.suffix]
        read(path)
        for place in {0, size - 1, *(draw.randrange(size) for _ in range(3))}:
            flip(path, place)
            with pytest.raises(ZtwError, match="altered since it was written"):
                read(path)
            flip(path, place)
            flips += 1
        read(path)
    tell(
        "4 flipped bytes",
        f"{flips} flips in all {len(files)} files that are read",
        "every one noticed and named",
    )


def test_every_kind_of_file_is_named_on_the_screen(finished, tmp_path, tell):
    """In the real DAG: the rule that reads the file is forced to run."""

    def named(worker: int) -> None:
        folder = shutil.copytree(finished, tmp_path / f"copy{worker}")
        for file, rule in list(READ_BY.items())[worker::2]:
            path = folder / "results/tiny" / file
            flip(path, path.stat().st_size // 2)
            failed = run(folder, SMALL, "--", "--forcerun", rule, "--until", rule)
            assert failed.returncode != 0, file
            (line,) = errors(failed.stdout)
            assert f"{file}: altered since it was written" in line
            shutil.rmtree(folder)  # Snakemake has removed the outputs of the failed job
            shutil.copytree(finished, folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(named, range(2)))
    tell("4 flipped bytes", f"{len(READ_BY)} kinds, through the real DAG", "each named in one line")


def test_an_intermediate_file_that_was_deleted_is_made_again(finished, tmp_path, tell):
    folder = shutil.copytree(finished, tmp_path / "copy")
    gone = folder / f"results/tiny/{CELL}/ensembles/cascade_detached/few.safetensors"
    gone.unlink()
    done = run(folder, SMALL)
    assert done.returncode == 0, shown(done)
    assert "fit_ensembles" in jobs_done(done.stdout)
    assert not any(rule.startswith("train") for rule in jobs_done(done.stdout))
    assert gone.exists()
    assert tables(folder) == tables(finished)
    tell("4 a file deleted", "an ensemble's weights", "fitted again, nothing trains again; same tables")


@pytest.mark.parametrize("kind", ["csv", "md", "tex"])
def test_a_flipped_table_is_not_shown(finished, tmp_path, kind, tell):
    folder = shutil.copytree(finished, tmp_path / "copy")
    path = folder / f"results/tiny/tables/accuracy_at_budget.{kind}"
    flip(path, path.stat().st_size // 2)
    refused = run(folder, SMALL)
    assert refused.returncode == 1
    (line,) = errors(refused.stdout)
    assert f"{path.name}: altered since it was written" in line
    assert "backbone alone" not in refused.stdout
    path.unlink()
    done = run(folder, SMALL)
    assert done.returncode == 0, shown(done)
    assert tables(folder) == tables(finished)
    tell("4 flipped bytes", f"the main table's {kind}", "named instead of shown; deleted, it is made again")


def test_flipped_images_are_decoded_again(finished, tmp_path, tell):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (path,) = Path(os.environ["ZTW_DATA"]).glob("decoded/digits-*/train-images.npy")
    whole = path.read_bytes()
    flip(path, len(whole) // 2)
    done = run(folder, SMALL, "--", "--forcerun", "train_backbone", "--until", "train_backbone")
    assert done.returncode == 0, shown(done)
    assert path.read_bytes() == whole
    log = folder / f"results/tiny/logs/train_backbone/{CELL.replace('/', '-')}.log"
    assert "train-images.npy: altered" in log.read_text()
    weights = f"results/tiny/{CELL}/backbone.safetensors"
    assert (folder / weights).read_bytes() == (finished / weights).read_bytes()
    tell(
        "4 flipped bytes",
        "the decoded images, then a training",
        "decoded again; the same weights bit for bit",
    )


@pytest.mark.filterwarnings("default")  # SQLAlchemy warns of a broken database
def test_a_flipped_store_never_makes_another_table(finished, tmp_path, tell, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(folder)
    study, database = Path("results/tiny"), Path("results/tiny/mlflow.db")
    files = sorted((study / CELL / "metrics").glob("*.json"))
    expected, whole = from_files(files), database.read_bytes()
    draw, outcomes = random.Random(SEED), Counter[str]()
    for count in range(1, 21):
        content = bytearray(whole)
        for place in [draw.randrange(len(whole)) for _ in range(count)]:
            content[place] ^= 1 << draw.randrange(8)
        database.write_bytes(content)
        try:
            found, _ = from_runs(study / "tracking.json", files)
        except ZtwError as error:
            outcomes["named" if "\n" not in str(error) else "in many lines"] += 1
        else:
            assert found.equals(expected)
            outcomes["the same table"] += 1
    assert not outcomes["in many lines"]
    said = ", ".join(f"{outcomes[what]} {what}" for what in ("named", "the same table"))
    tell("4 flipped bytes", "mlflow.db, 1, 2, ... 20 bits anywhere in it", f"{said}; never another table")
