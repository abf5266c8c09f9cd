"""Checkpoints of a training: the next try goes on in the middle of an epoch and ends with the same weights."""

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

EVERY = 120.0
STOPS = (signal.SIGTERM, signal.SIGINT)
SAVES = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))


class Kept(Protocol):
    """What a checkpoint holds."""

    @property
    def position(self) -> str:
        """How far it is, in words."""

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors, and its numbers and texts as JSON knows them."""

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Be what was kept."""


@dataclass
class Checkpoints:
    """Where a training keeps its checkpoints, the newest two, each sealed with its SHA-256.

    of: what the training is ("code", "settings", ...) -> digest; a checkpoint of another is not used, and
    `report` gets one line of it. every: seconds of work from one to the next. resumed: what was gone on with.
    """

    folder: Path
    of: Mapping[str, str]
    report: Report = lambda line: None
    every: float = EVERY
    resumed: list[dict[str, Any]] = field(default_factory=list)

    def phase(self, name: str) -> Checkpoints:
        """Those of a training that is one of several in a job, each of which is gone on with at its end."""
        return replace(self, folder=self.folder / name)

    def clear(self) -> None:
        """Remove them all: what was trained is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.exists() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def restore(self, training: Kept) -> bool:
        """Bring a training to where its newest whole checkpoint is; returns whether there was one."""
        for path in self._files():
            try:
                tensors = read_tensors(path, "the one before it is used")
                content = json.loads(read_metadata(path)["content"])
            except ZtwError as error:
                self.report(Note(str(error)))
                continue
            of = content["of"]
            if other := sorted(key for key in {*of, *self.of} if of.get(key) != self.of.get(key)):
                self.report(
                    Note(f"{path}: of other {' and '.join(other)}, so not used; training from the start")
                )
                shutil.rmtree(self.folder)
                return False
            training.restore(tensors, content["facts"])
            self.resumed.append({"at": training.position, "host": socket.gethostname()})
            self.report(f"resumed at {training.position}")
            return True
        return False

    def save(self, training: Kept, step: int) -> None:
        """Write one; the one before is kept until the next is whole, those before it go."""
        tensors, facts = training.snapshot()
        path = self.folder / f"step-{step:010d}.safetensors"
        write_tensors(path, tensors, {"content": json.dumps({"of": dict(self.of), "facts": facts})})
        for old in self._files()[2:]:
            old.unlink()
            old.with_name(f".{old.name}.sha256").unlink(missing_ok=True)

    @contextmanager
    def attended(self, training: Kept) -> Iterator[Attendant]:
        """Within it SIGTERM and SIGINT end the training after its step, with a checkpoint; SIGUSR1 asks for one."""
        attendant = Attendant(self, training)
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {sent: signal.signal(sent, attendant.hear) for sent in (*STOPS, *SAVES)}
        try:
            yield attendant
        finally:
            for sent, handler in before.items():
                signal.signal(sent, handler)


class Attendant:
    """Looks after a training at work: saves it when it is time or asked for."""

    def __init__(self, checkpoints: Checkpoints, training: Kept) -> None:
        self.checkpoints, self.training = checkpoints, training
        self.saved = time.monotonic()
        self.heard: signal.Signals | None = None

    def hear(self, sent: int, frame: object) -> None:
        """A signal has come; it is answered after the step, when all that is kept fits together."""
        if self.heard not in STOPS:
            self.heard = signal.Signals(sent)

    def after_step(self, step: int) -> None:
        """Save where that is due; raises ZtwError after a signal that ends the training."""
        if self.heard is None and time.monotonic() - self.saved < self.checkpoints.every:
            return
        heard, self.heard = self.heard, None
        self.checkpoints.save(self.training, step)
        self.saved = time.monotonic()
        if heard in STOPS:
            raise ZtwError(
                f"stopped by {heard.name} at {self.training.position}; the same command goes on from there"
            )
