"""Compute one SHA-256 of all images of a folder, so that a study can check its images."""

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
    """Hash the paths and contents of all images of a folder: the SHA-256 of sorted lines as `sha256sum` prints them.

    Args:
        listing: split -> its images. Paths in the lines start at the split's folder, as `train/cat/0.png`, in
            Unicode form NFC.
        targets: split -> the folder that stores its lines; an unchanged split is not read again.
        report: called before the images of a split are read.
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
    """Return `sha256sum`'s lines for a split, sorted by the bytes of the paths."""
    paths = {os.fsencode(nfc(f"{listed.place.name}/{file}")): listed.place / file for _, file in listed.rows}
    names = sorted(paths)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        digests = pool.map(lambda name: sha256(paths[name]), names)
        return b"".join(
            digest.encode() + b"  " + name + b"\n" for digest, name in zip(digests, names, strict=True)
        )
