"""Save checkpoints, from which a stopped training resumes within an epoch and ends with the same weights."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ztw.errors import ZtwError
from ztw.progress import Note, Report
from ztw.tensors import read_metadata, read_tensors, write_tensors

EVERY = 120.0  # seconds
STOPS = (signal.SIGTERM, signal.SIGINT)
SAVES = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))


class Resumable(Protocol):
    """A training whose state a checkpoint saves."""

    @property
    def position(self) -> str:
        """The progress in words."""

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state: tensors, and JSON values."""

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Load the saved state."""


@dataclass
class Checkpoints:
    """The newest two checkpoints of a training, each with its SHA-256.

    Args:
        of: the training's identity, such as "code" and "settings" -> digest. A checkpoint with another identity is
            deleted.
        report: called when a checkpoint is used or refused.
        every: seconds between checkpoints.
        resumed: positions at which the training was resumed, with the machine's name.
    """

    folder: Path
    of: Mapping[str, str]
    report: Report = lambda line: None
    every: float = EVERY
    resumed: list[dict[str, Any]] = field(default_factory=list)

    def phase(self, name: str) -> Checkpoints:
        """Return the checkpoints of one phase of a job that trains several."""
        return replace(self, folder=self.folder / name)

    def clear(self) -> None:
        """Remove all checkpoints, after the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.exists() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def restore(self, training: Resumable) -> bool:
        """Load the newest complete checkpoint of this training; return whether there was one."""
        for path in self._files():
            try:
                tensors = read_tensors(path, "the previous checkpoint is used")
                content = json.loads(read_metadata(path)["content"])
            except ZtwError as error:
                self.report(Note(str(error)))
                continue
            of = content["of"]
            if other := sorted(key for key in {*of, *self.of} if of.get(key) != self.of.get(key)):
                self.report(
                    Note(f"{path}: not used, because {' and '.join(other)} changed; training from the start")
                )
                shutil.rmtree(self.folder)
                return False
            training.restore(tensors, content["facts"])
            self.resumed.append({"at": training.position, "host": socket.gethostname()})
            self.report(f"resumed at {training.position}")
            return True
        return False

    def save(self, training: Resumable, step: int) -> None:
        """Save a checkpoint, keep the previous one and remove older ones."""
        tensors, values = training.snapshot()
        path = self.folder / f"step-{step:010d}.safetensors"
        write_tensors(path, tensors, {"content": json.dumps({"of": dict(self.of), "facts": values})})
        for old in self._files()[2:]:
            old.unlink()
            old.with_name(f".{old.name}.sha256").unlink(missing_ok=True)

    @contextmanager
    def saving(self, training: Resumable) -> Iterator[Saver]:
        """Handle signals in a block: after the current step, SIGTERM and SIGINT save and stop, SIGUSR1 saves."""
        saver = Saver(self, training)
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {sent: signal.signal(sent, saver.on_signal) for sent in (*STOPS, *SAVES)}
        try:
            yield saver
        finally:
            for sent, handler in before.items():
                signal.signal(sent, handler)


class Saver:
    """Save a running training at intervals and after signals."""

    def __init__(self, checkpoints: Checkpoints, training: Resumable) -> None:
        self.checkpoints, self.training = checkpoints, training
        self.saved = time.monotonic()
        self.signal: signal.Signals | None = None

    def on_signal(self, sent: int, frame: object) -> None:
        """Record a signal; `after_step` acts on it, when the state is consistent."""
        if self.signal not in STOPS:
            self.signal = signal.Signals(sent)

    def after_step(self, step: int) -> None:
        """Save a checkpoint when it is due.

        Raises:
            ZtwError: after a signal that stops the training.
        """
        if self.signal is None and time.monotonic() - self.saved < self.checkpoints.every:
            return
        received, self.signal = self.signal, None
        self.checkpoints.save(self.training, step)
        self.saved = time.monotonic()
        if received in STOPS:
            raise ZtwError(
                f"stopped by {received.name} at {self.training.position}; the same command resumes from there"
            )
