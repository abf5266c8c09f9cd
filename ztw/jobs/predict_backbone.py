"""The job that writes down the logits of a static network: a backbone without exits that stands beside early exits."""

from __future__ import annotations

from collections.abc import Mapping

from ztw.data.splits import cell_splits
from ztw.device import computed_on
from ztw.errors import ZtwError
from ztw.evaluation import predictions
from ztw.jobs.cell import CellNetworks, compute_on
from ztw.jobs.predict import write_predictions
from ztw.models.network import static_network
from ztw.progress import Report
from ztw.study.settings import DataSettings, HardwareSettings


def predict_backbone(
    networks: CellNetworks,
    data: DataSettings,
    hardware: HardwareSettings,
    batch_size: int,
    outputs: Mapping[str, str],
    report: Report,
) -> None:
    """Write the logits (1, N, C) of a cell's backbone on every split; outputs: split -> file."""
    device, precision = compute_on(hardware)
    parts = cell_splits(networks.record, data, networks.cell.seed, report)
    network = static_network(networks.backbone()).to(device).eval()
    for split, path in outputs.items():
        (logits,), labels = predictions.predict_networks(
            [network], parts[split].to(device), batch_size, precision, None, report
        )
        if not logits.isfinite().all():
            raise ZtwError(f"{networks.files.backbone}: its logits on {split} are not finite; train it again")
        write_predictions(path, logits, labels, {"split": split, **computed_on(device, precision)})
