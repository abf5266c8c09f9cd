"""Where every file of a study lies: the only place that spells such a path. Imports no torch.

No digest of a job's code follows this module (`ztw.study.provenance.NAMES_ONLY`): a path changes no result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Of the repository, not of a study: published figures that tables stand beside
PUBLISHED = Path(__file__).parents[2] / "config" / "published.csv"


@dataclass(frozen=True)
class Cell:
    """One data set, one architecture and one seed.

    A rule of the workflow names its cell by wildcards: `Cell("{dataset}", "{arch}", "{seed}")`.
    """

    dataset: str
    arch: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset}/{self.arch}/seed{self.seed}"

    @property
    def title(self) -> str:
        """The cell as a part of a file's name."""
        return f"{self.dataset}-{self.arch}-seed{self.seed}"

    def with_arch(self, arch: str) -> Cell:
        """Return the cell of another architecture, same data set and seed."""
        return Cell(self.dataset, arch, self.seed)


def metadata(weights: Path) -> Path:
    """Return the JSON beside a file of weights or predictions."""
    return weights.with_suffix(".json")


@dataclass(frozen=True)
class Layout:
    """The files of one study.

    Args:
        folder: of the study, `results/<study>`.
    """

    folder: Path

    # A data set

    def record(self, dataset: str, split: str) -> Path:
        """What is known of a prepared data set; split: "train" or "test"."""
        return self.folder / "data" / dataset / f"{split}.json"

    # A cell

    def cell(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.folder / str(cell)

    def checkpoints(self, cell: Cell, training: str) -> Path:
        """The folder of an interrupted training's checkpoints."""
        return self.cell(cell) / "checkpoints" / training

    def backbone(self, cell: Cell) -> Path:
        """Weights of the backbone."""
        return self.cell(cell) / "backbone.safetensors"

    def ics(self, cell: Cell, ics: str) -> Path:
        """Weights of an IC set; of a set that trains the backbone, too, all weights."""
        return self.cell(cell) / "ics" / f"{ics}.safetensors"

    def predictions(self, cell: Cell, ics: str, split: str) -> Path:
        """Logits (K, N, C) and labels (N,) of an IC set's exits; split: "train", "validation" or "test"."""
        return self.cell(cell) / "predictions" / ics / f"{split}.safetensors"

    def backbone_predictions(self, cell: Cell, split: str) -> Path:
        """Logits (1, N, C) and labels (N,) of the backbone alone, where it is a static network."""
        return self.cell(cell) / "backbone_predictions" / f"{split}.safetensors"

    def ensemble(self, cell: Cell, ics: str, ensemble: str) -> Path:
        """Weights of an ensemble that is fitted on an IC set."""
        return self.cell(cell) / "ensembles" / ics / f"{ensemble}.safetensors"

    def curves(self, cell: Cell, method: str) -> Path:
        """Accuracy and cost of a method at every threshold."""
        return self.cell(cell) / "curves" / f"{method}.parquet"

    def metrics(self, cell: Cell, method: str) -> Path:
        """Metrics of a method, and what it was computed with."""
        return self.cell(cell) / "metrics" / f"{method}.json"

    def correct(self, cell: Cell, method: str) -> Path:
        """Which test samples a method classifies correctly, by protocol and budget."""
        return self.cell(cell) / "correct" / f"{method}.safetensors"

    def network(self, cell: Cell, method: str) -> Path:
        """What `ztw.load` reads in the folder of a method's network; it refers to the weights."""
        return self.cell(cell) / "networks" / method / "network.json"

    def latency(self, cell: Cell) -> Path:
        """Measured times of all methods."""
        return self.cell(cell) / "latency.json"

    def method_latency(self, cell: Cell, method: str) -> Path:
        """Measured times of one method, kept from run to run."""
        return self.cell(cell) / "latency" / f"{method}.json"

    def runs(self, cell: Cell) -> Path:
        """The ids of the cell's MLflow runs."""
        return self.cell(cell) / "runs.json"

    def cell_figure(self, cell: Cell, kind: str = "png") -> Path:
        """Accuracy against cost of one seed, an artifact of the cell's MLflow run; kind: "png" or "pdf"."""
        return self.cell(cell) / f"accuracy_cost.{kind}"

    # A cell of a published study, which has the files of a run and these

    def provenance(self, cell: Cell) -> Path:
        """When, where and with what a cell was computed."""
        return self.cell(cell) / "provenance.json"

    def cell_config(self, cell: Cell) -> Path:
        """The study's file that a cell was computed by."""
        return self.cell(cell) / "config.yaml"

    def published_predictions(self, cell: Cell, ics: str) -> Path:
        """Logits of an IC set on the validation and the test images, in half precision."""
        return self.cell(cell) / "predictions" / f"{ics}.safetensors"

    # The study

    @property
    def config(self) -> Path:
        """The file of a published study, which names all its cells."""
        return self.folder / "config.yaml"

    @property
    def store(self) -> Path:
        """Which MLflow store the study logs to."""
        return self.folder / "tracking.json"

    @property
    def database(self) -> Path:
        """The study's own MLflow store, with `tracking: sqlite`."""
        return self.folder / "mlflow.db"

    def table(self, name: str, kind: str = "csv") -> Path:
        """A table; kind: "csv", "md" or "tex"."""
        return self.folder / "tables" / f"{name}.{kind}"

    def figure(self, title: str, name: str, kind: str = "png") -> Path:
        """A figure; title: of `figure_title`; kind: "png" or "pdf"."""
        return self.folder / "figures" / f"{title}-{name}.{kind}"

    # A job

    def log(self, rule: str, *names: str) -> Path:
        """The log of a job."""
        return self._of_job("logs", rule, names, "log")

    def benchmark(self, rule: str, *names: str) -> Path:
        """Snakemake's own measurement of a job."""
        return self._of_job("benchmarks", rule, names, "tsv")

    def _of_job(self, kind: str, rule: str, names: tuple[str, ...], suffix: str) -> Path:
        place = f"{rule}/{'-'.join(names)}" if names else rule
        return self.folder / kind / f"{place}.{suffix}"


def figure_title(dataset: str, arch: str) -> str:
    """Return a data set and an architecture as part of a file's name; an architecture's may hold a slash."""
    return "-".join([dataset, *Path(arch).parts])
