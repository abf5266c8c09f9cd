"""Return the path of every file of a study; no other module builds such paths. Imports no torch.

No job's code digest includes this module (`ztw.study.provenance.NAMES_ONLY`): a path changes no result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Published numbers for the tables; this file is in the repository, not in a study's folder
PUBLISHED = Path(__file__).parents[2] / "config" / "published.csv"
# The backbone without exits, beside IC sets; no IC set can have a name with a dot
ALONE = "backbone.alone"


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
        """The cell as a part of file names."""
        return f"{self.dataset}-{self.arch}-seed{self.seed}"

    def with_arch(self, arch: str) -> Cell:
        """Return the cell of another architecture, same data set and seed."""
        return Cell(self.dataset, arch, self.seed)


def metadata(weights: Path) -> Path:
    """Return the path of the JSON beside a file of weights or predictions."""
    return weights.with_suffix(".json")


@dataclass(frozen=True)
class Layout:
    """Paths of the files of one study.

    Args:
        folder: the study's folder, `results/<study>`.
    """

    folder: Path

    # A data set

    def record(self, dataset: str, split: str) -> Path:
        """Return the path of a data set's record; split: "train" or "test"."""
        return self.folder / "data" / dataset / f"{split}.json"

    # A cell

    def cell(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.folder / str(cell)

    def checkpoints(self, cell: Cell, training: str) -> Path:
        """Return the folder of a training's checkpoints."""
        return self.cell(cell) / "checkpoints" / training

    def backbone(self, cell: Cell) -> Path:
        """Return the path of the backbone's weights."""
        return self.cell(cell) / "backbone.safetensors"

    def ics(self, cell: Cell, ics: str) -> Path:
        """Return the path of an IC set's weights, with the backbone's if the set trains the backbone."""
        return self.cell(cell) / "ics" / f"{ics}.safetensors"

    def predictions(self, cell: Cell, ics: str, split: str) -> Path:
        """Return the path of logits (K, N, C) and labels (N,); split: "train", "validation" or "test"."""
        return self.cell(cell) / "predictions" / ics / f"{split}.safetensors"

    def backbone_predictions(self, cell: Cell, split: str) -> Path:
        """Return the path of a static network's logits (1, N, C) and labels (N,)."""
        return self.cell(cell) / "backbone_predictions" / f"{split}.safetensors"

    def int8_predictions(self, cell: Cell, network: str, split: str) -> Path:
        """Return the path of a network's logits in int8 (K, N, C), and labels (N,); network: an IC set, or ALONE."""
        return self.cell(cell) / "int8_predictions" / network / f"{split}.safetensors"

    def ensemble(self, cell: Cell, ics: str, ensemble: str) -> Path:
        """Return the path of the weights of an ensemble fitted on an IC set."""
        return self.cell(cell) / "ensembles" / ics / f"{ensemble}.safetensors"

    def curves(self, cell: Cell, method: str) -> Path:
        """Return the path of a method's accuracy and cost at every threshold."""
        return self.cell(cell) / "curves" / f"{method}.parquet"

    def metrics(self, cell: Cell, method: str) -> Path:
        """Return the path of a method's metrics, settings and hardware."""
        return self.cell(cell) / "metrics" / f"{method}.json"

    def correct(self, cell: Cell, method: str) -> Path:
        """Return the path of a method's correctly classified test samples, by protocol and budget."""
        return self.cell(cell) / "correct" / f"{method}.safetensors"

    def network(self, cell: Cell, method: str) -> Path:
        """Return the path of a network's description and of the folder that `ztw.load` reads."""
        return self.cell(cell) / "networks" / method / "network.json"

    def latency(self, cell: Cell) -> Path:
        """Return the path of the measured latency of all methods."""
        return self.cell(cell) / "latency.json"

    def method_latency(self, cell: Cell, method: str) -> Path:
        """Return the path of one method's measured latency, kept from run to run."""
        return self.cell(cell) / "latency" / f"{method}.json"

    def runs(self, cell: Cell) -> Path:
        """Return the path of the ids of a cell's MLflow runs."""
        return self.cell(cell) / "runs.json"

    def cell_figure(self, cell: Cell, kind: str = "png") -> Path:
        """Return the path of a figure of accuracy against cost for one seed; kind: "png" or "pdf"."""
        return self.cell(cell) / f"accuracy_cost.{kind}"

    # Further files of a cell in a published study

    def provenance(self, cell: Cell) -> Path:
        """Return the path of a published cell's provenance: date, machine and software."""
        return self.cell(cell) / "provenance.json"

    def cell_config(self, cell: Cell) -> Path:
        """Return the path of the study's config as a published cell used it."""
        return self.cell(cell) / "config.yaml"

    def published_predictions(self, cell: Cell, name: str) -> Path:
        """Return the path of logits on validation and test images, in half precision; name: an IC set or static row."""
        return self.cell(cell) / "predictions" / f"{name}.safetensors"

    def published_ensemble(self, cell: Cell, method: str) -> Path:
        """Return the path of the weights of a method's ensemble, published with the logits it was fitted for."""
        return self.cell(cell) / "ensembles" / f"{method}.safetensors"

    # The study

    @property
    def config(self) -> Path:
        """Path of the study's config, without a password; of a published study, with all its cells."""
        return self.folder / "config.yaml"

    @property
    def report(self) -> Path:
        """Path of the study's report."""
        return self.folder / "report.html"

    @property
    def pipeline(self) -> Path:
        """Path of Snakemake's own report, of all jobs."""
        return self.folder / "pipeline.html"

    @property
    def store(self) -> Path:
        """Path of the file that names the study's MLflow store."""
        return self.folder / "tracking.json"

    @property
    def database(self) -> Path:
        """Path of the study's own MLflow store, with `tracking: sqlite`."""
        return self.folder / "mlflow.db"

    def table(self, name: str, kind: str = "csv") -> Path:
        """Return the path of a table; kind: "csv", "md" or "tex"."""
        return self.folder / "tables" / f"{name}.{kind}"

    def figure(self, title: str, name: str, kind: str = "png") -> Path:
        """Return the path of a figure; title: from `figure_title`; kind: "png" or "pdf"."""
        return self.folder / "figures" / f"{title}-{name}.{kind}"

    def gallery(self, title: str) -> Path:
        """Return the path of the images that leave first, in the middle and last; title: from `figure_title`."""
        return self.folder / "gallery" / f"{title}.json"

    # A job

    def log(self, rule: str, *names: str) -> Path:
        """Return the path of a job's log."""
        return self._of_job("logs", rule, names, "log")

    def benchmark(self, rule: str, *names: str) -> Path:
        """Return the path of Snakemake's benchmark of a job."""
        return self._of_job("benchmarks", rule, names, "tsv")

    def _of_job(self, kind: str, rule: str, names: tuple[str, ...], suffix: str) -> Path:
        place = f"{rule}/{'-'.join(names)}" if names else rule
        return self.folder / kind / f"{place}.{suffix}"


def figure_title(dataset: str, arch: str) -> str:
    """Return a data set and an architecture as a part of file names; slashes become "-"."""
    return "-".join([dataset, *Path(arch).parts])
