"""One SHA-256 of all images of a folder, so that a study can name the images it was made with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ztw.data.folders import Listed, nfc
from ztw.files import atomic, sha256
from ztw.progress import Report

FILE = "images.sha256"


def images_sha256(listing: Mapping[str, Listed], targets: Mapping[str, Path], report: Report) -> str:
    """Hash all images of a folder, their paths and contents: what `sha256sum` says of its lines for them, sorted.

    Args:
        listing: split -> its images; the paths of their lines start at the split's folder, as `train/cat/0.png`, in
            Unicode's form NFC.
        targets: split -> the folder that keeps its lines, so that only a split that changed is read again.
        report: hears which split is read.
    """
    digest = hashlib.sha256()
    for split, listed in sorted(listing.items(), key=lambda item: item[1].place.name):
        kept = targets[split] / FILE
        if not kept.exists():
            report(f"hashing the images of {split}")
            with atomic(kept) as scratch:
                scratch.write_bytes(_lines(listed))
        digest.update(kept.read_bytes())
    return digest.hexdigest()


def _lines(listed: Listed) -> bytes:
    """A line of every image of a split, as `sha256sum` writes it, in the order of the paths' bytes."""
    paths = {os.fsencode(nfc(f"{listed.place.name}/{file}")): listed.place / file for _, file in listed.rows}
    names = sorted(paths)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = pool.map(lambda name: sha256(paths[name]), names)
        return b"".join(
            digest.encode() + b"  " + name + b"\n" for digest, name in zip(digests, names, strict=True)
        )
