"""Run an exported network in ONNX Runtime, optimised for this machine."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ztw.batch import Batch, InputSpec, tensors_of
from ztw.device import device_name
from ztw.errors import ZtwError, reason
from ztw.exits.fitted_base import unfitted
from ztw.exits.inference import ExitResult
from ztw.exits.rules import ExitRule, as_rule, rule_from
from ztw.files import check_seal, sealed
from ztw.onnx.form import BOUNDS, LOGITS, Form, answer
from ztw.onnx.write import METADATA, SCHEMA, float32_below, need_onnx
from ztw.tensors import as_tensor

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
CHUNK = 32  # nested levels keep all activations: 0.9 GB at 256 samples for a ResNet-56 with 27 exits
NESTED = 4  # version of the cached graphs; raise it when `nest` changes
SESSIONS = ("_single", "_each", "_batched", "_flat", "_pool")  # created on first use, one set per process
INHERITED: list[Any] = []  # sessions of a parent process, never freed in this process
LARGE = 1e9  # MACs of a backbone. From here on, e.g. for ResNet-50, batches are no faster than single images

Arrays = dict[str, np.ndarray]  # input -> its samples


class OnnxRunner:
    """Run an exported network in ONNX Runtime.

    A float32 file gives the exits and logits of `EarlyExitNetwork.infer`, apart from rounding. On first use, the graph
    is optimised for this machine, and the optimised graph is stored in the cache. All threads work on a single sample
    together. In a batch, each thread works on its own samples.

    Args:
        path: a file from `export_onnx`.
        threads: number of threads per call; None = as many as PyTorch uses.
        providers: execution providers of ONNX Runtime, in the order of preference. Only the CPU is tested. On other
            providers, the file runs without ztw's optimisation.
        chunk: number of samples that run together; None = 32, or 1 if the backbone has at least 1e9
            multiply-accumulate operations (MACs).
        cache: folder for optimised graphs; True = the user's cache folder, False = no cache.

    Attributes:
        rule: the exit rule in the file; None for a Backbone.
        exits: number of exits K; 1 for a Backbone, and for a file with the rule "fixed_exit".
        cost: float64 (K,), cumulative MACs of the exits.
        backbone_cost: MACs of the backbone alone.
        class_names: names of the classes, or None.
        metadata: the file's metadata, a dict.

    Raises:
        ZtwError: if the packages of ztw[onnx] are missing, for an invalid argument, and for a file that is damaged or
            that this version's `export_onnx` did not write.

    Example:
        >>> import torch, ztw
        >>> path = ztw.export_onnx(ztw.build_backbone("resnet8"), None, "backbone.onnx")
        >>> ztw.OnnxRunner(path)(torch.randn(4, 3, 32, 32)).logits.shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        path: Path | str,
        threads: int | None = None,
        providers: Sequence[str] = (CPU,),
        chunk: int | None = None,
        cache: Path | str | bool = True,
    ) -> None:
        need_onnx()
        import onnx
        import onnxruntime

        for name, value in {"threads": threads, "chunk": chunk}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ZtwError(f"{name} {value!r}: must be a whole number of at least 1, or None")
        for provider in [providers] if isinstance(providers, str) else providers:
            if provider not in (here := onnxruntime.get_available_providers()):
                raise ZtwError(f"provider {provider!r}: this ONNX Runtime has {', '.join(here)}")
        try:
            self.content = Path(path).read_bytes()
            properties = {item.key: item.value for item in onnx.load_from_string(self.content).metadata_props}
            self.metadata: dict[str, Any] = json.loads(properties[METADATA])
        except OSError as error:
            raise ZtwError(f"{path}: cannot be read ({error.strerror})") from error
        except KeyError as error:
            raise ZtwError(f"{path}: not written by ztw.export_onnx") from error
        except Exception as error:  # protobuf's DecodeError is not a public type
            raise ZtwError(f"{path}: damaged, or not an ONNX file") from error
        if (schema := self.metadata["schema"]) != SCHEMA:
            raise ZtwError(
                f"{path}: schema {schema}, written by ztw {self.metadata['ztw']}; this one reads schema {SCHEMA}:"
                " export the network again"
            )
        self.path = Path(path)
        self.threads: int = threads or torch.get_num_threads()
        self.providers = [providers] if isinstance(providers, str) else list(providers)
        self.exits: int = self.metadata["exits"]
        self.cost = torch.tensor(self.metadata["macs"], dtype=torch.float64)
        self.backbone_cost: float = self.metadata["backbone_macs"]
        one_by_one = self.backbone_cost >= LARGE and self.providers == [CPU]
        self.chunk = chunk or (1 if one_by_one else CHUNK)
        self.class_names: list[str] | None = self.metadata["class_names"]
        self.rule = None if self.metadata["rule"] is None else rule_from(self.metadata["rule"])
        self._last: tuple[Any, np.ndarray] = (None, np.empty(0))  # the last rule and its bounds
        self.form = Form(
            self.exits,
            self.metadata["num_classes"],
            InputSpec.from_json(self.metadata["inputs"]),
            self.metadata["log_probabilities"],
        )
        self.folder = self._cache_folder(cache)
        self._process = os.getpid()

    def __call__(self, inputs: Batch | np.ndarray | Any, rule: ExitRule | str | None = None) -> ExitResult:
        """Classify inputs with early exits.

        Args:
            inputs: tensors or NumPy arrays, e.g. images (N, C, H, W), see `EarlyExitNetwork.infer`.
            rule: None = the file's rule. Another rule must be of the same class, e.g. with another threshold.

        Returns:
            Logits and exit index of each sample, on the CPU.

        Raises:
            ZtwError: for inputs of another shape or with values that are not finite, and for a rule of another class.
        """
        arrays, count = self._checked(inputs)
        bounds = self._bounds(self.rule if rule is None else as_rule(rule))
        if count == 1:
            return self._result([self._run(self._single, bounds, arrays)])
        if not count:
            return ExitResult(torch.empty(0, self.form.num_classes), torch.empty(0, dtype=torch.int64))
        size = min(self.chunk, -(-count // self._workers))
        chunks = list(_pieces(arrays, count, size))
        run = partial(self._run, self._each if size == 1 else self._batched, bounds)
        return self._result(list(map(run, chunks) if len(chunks) == 1 else self._pool.map(run, chunks)))

    def logits(self, inputs: Batch | np.ndarray | Any) -> Tensor:
        """Compute the logits float32 (K, N, classes) of every exit, without early exits."""
        (arrays, count), names = self._checked(inputs), [LOGITS]
        if self.exits > 1:
            names = [answer(exit) for exit in range(self.exits)]
        logits = torch.empty(self.exits, count, self.form.num_classes)
        for start, piece in zip(range(0, count, CHUNK), _pieces(arrays, count, CHUNK), strict=True):
            found = self._run(self._flat, {}, piece, names)
            logits[:, start : start + CHUNK] = torch.from_numpy(np.stack(found))
        return logits.log_softmax(-1) if self.form.log_probabilities else logits

    def _checked(self, inputs: Any) -> tuple[Arrays, int]:
        """Check inputs and convert them to the graph's; also return the number of samples.

        Uses NumPy: PyTorch's threads hang in a forked process.
        """
        if self._process != os.getpid():  # after a fork, the threads of these sessions are in the parent
            INHERITED.append([vars(self).pop(name, None) for name in SESSIONS])
            self._process = os.getpid()
        spec = self.form.inputs
        if spec.form == "tensor":
            inputs = _array(inputs, spec.names[0])
        elif isinstance(inputs, Mapping):
            inputs = {name: _array(value, str(name)) for name, value in inputs.items()}
        elif isinstance(inputs, tuple | list):
            inputs = [_array(value, f"input {number}") for number, value in enumerate(inputs)]
        arrays = {
            item.name: np.ascontiguousarray(array, dtype=item.dtype)
            for item, array in zip(spec.inputs, tensors_of(spec.check(inputs)), strict=True)
        }
        return arrays, len(arrays[spec.names[0]])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the sessions. A copy creates its own."""
        return {name: value for name, value in vars(self).items() if name not in SESSIONS}

    def _bounds(self, rule: ExitRule | None) -> Arrays:
        """Return the input `bounds` with a rule's thresholds; {} without a rule."""
        if rule is None:
            return {}
        if rule.single and rule == self.rule:
            return {}
        if rule.single and type(rule) is type(self.rule):
            raise ZtwError(f"{self.path}: exported for {self.rule}, not for {rule}")
        known, bounds = self._last
        if rule is not known:  # cached, because this runs once per call
            if type(rule) is not type(self.rule):
                names = f"{type(self.rule).__name__}, not for {type(rule).__name__}"
                fitted = (
                    " with other fitted parameters"
                    if unfitted(type(rule)) is unfitted(type(self.rule))
                    else ""
                )
                raise ZtwError(f"{self.path}: exported for {names}{fitted}")
            bounds = float32_below(rule.bounds(self.exits))
            self._last = (rule, bounds)
        return {BOUNDS: bounds}

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        bounds: Arrays,
        arrays: Arrays,
        names: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        try:
            return session.run(names, {**arrays, **bounds})
        except Exception as error:  # ONNX Runtime's errors are private types
            raise ZtwError(
                f"{self.path}: ONNX Runtime cannot compute these inputs ({reason(error)[:200]})"
            ) from error

    def _result(self, found: list[list[np.ndarray]]) -> ExitResult:
        logits, *where = (
            torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
            for parts in zip(*found, strict=True)
        )
        only = self.rule.only_exit if self.rule is not None else None
        return ExitResult(logits, where[0] if where else torch.full((len(logits),), (only or 1) - 1))

    @cached_property
    def _single(self) -> onnxruntime.InferenceSession:
        return self._session("single", self.threads)

    @cached_property
    def _each(self) -> onnxruntime.InferenceSession:
        """Session for single samples, each on one thread."""
        return self._single if self._workers == 1 else self._session("single", 1)

    @cached_property
    def _batched(self) -> onnxruntime.InferenceSession:
        return self._session("batched", 1 if self._workers > 1 else self.threads)

    @property
    def _workers(self) -> int:
        """Number of threads that work on their own samples."""
        return self.threads if self.providers == [CPU] else 1

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._workers)

    @cached_property
    def _flat(self) -> onnxruntime.InferenceSession:
        import onnx

        from ztw.onnx.nesting import flatten

        model = onnx.load_from_string(self.content)
        flat = model if self.exits == 1 else flatten(model, self.form)
        return self._load(flat.SerializeToString(), optimise=True)

    def _session(self, name: str, threads: int) -> onnxruntime.InferenceSession:
        """Return a session for single samples or for batches.

        ONNX Runtime optimises nested graphs badly. The graph is therefore flattened, optimised and nested again.
        """
        if self.providers != [CPU] or self.exits == 1:
            return self._load(self.content, optimise=True, threads=threads)
        if self.folder is None:
            return self._load(self._fast(name), optimise=False, threads=threads)
        kept = self.folder / f"{name}.onnx"
        try:
            check_seal(kept)
            return self._load(kept.read_bytes(), optimise=False, threads=threads)
        except (OSError, ZtwError):  # missing or damaged
            content = self._fast(name)
        try:
            with sealed(kept) as scratch:
                scratch.write_bytes(content)
        except OSError:  # disk full or no permission: the next process optimises again
            pass
        return self._load(content, optimise=False, threads=threads)

    def _fast(self, name: str) -> bytes:
        import onnx

        from ztw.onnx.nesting import flatten, nest

        with tempfile.TemporaryDirectory() as folder:
            flat = flatten(onnx.load_from_string(self.content), self.form)
            optimised = Path(folder, "flat.onnx")
            self._load(flat.SerializeToString(), optimise=True, write=optimised)
            try:
                nested = nest(onnx.load(optimised), self.form, name == "single", optimised=True)
            except ZtwError:  # the optimised graph has an axis of samples times something else
                self._load(self.content, optimise=True, write=optimised)
                return optimised.read_bytes()
            return nested.SerializeToString()

    def _load(
        self, content: bytes, optimise: bool, write: Path | None = None, threads: int | None = None
    ) -> onnxruntime.InferenceSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or self.threads
        if write is not None:
            options.optimized_model_filepath = str(write)
        return onnxruntime.InferenceSession(content, options, providers=self.providers)

    def _cache_folder(self, cache: Path | str | bool) -> Path | None:
        import onnxruntime

        if cache is False:
            return None
        try:
            base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
            folder = Path(base if cache is True else str(cache)).expanduser()
        except RuntimeError:  # the user has no home folder
            return None
        key = hashlib.sha256(self.content)
        key.update(f"{onnxruntime.__version__} {NESTED} {device_name(torch.device('cpu'))}".encode())
        return (folder / "ztw" / "onnx" if cache is True else folder) / key.hexdigest()[:24]


def _array(given: Any, name: str) -> np.ndarray:
    """Convert a tensor, or nested lists of numbers, to a NumPy array."""
    if isinstance(given, np.ndarray):
        return given
    tensor = as_tensor(given, name).detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _pieces(arrays: Arrays, count: int, size: int) -> Iterator[Arrays]:
    """Yield pieces of at most `size` samples."""
    for start in range(0, count, size):
        yield {name: array[start : start + size] for name, array in arrays.items()}
