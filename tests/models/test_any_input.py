"""Classifiers of texts, tables, signals and several inputs: cut, given exits, inferred, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from any_models import Lstms
from own_models import Encoder, Scaled, Signals, TwoInputs
from torch import Tensor, nn

import ztw
from ztw.batch import mapped, pick, size_of
from ztw.models.backbone import seen
from ztw.models.exporting import call, first_tensor

ROWS = 24


def texts(length: int, rows: int = ROWS) -> dict[str, Tensor]:
    """Token ids, each row with padding of its own."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(50, (rows, length), generator=generator)
    kept = 1 + torch.arange(rows) % length
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < kept[:, None]).long()}


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def check_infer(network: ztw.EarlyExitNetwork, batch: Any) -> None:
    """Samples leave where their own logits say, about half at each exit, in batches and one by one."""
    network = network.eval()
    with torch.no_grad():
        logits = network(batch)
    scores, staying = logits.softmax(-1).amax(-1), torch.ones(size_of(batch), dtype=torch.bool)
    thresholds, leaves_at = [], torch.full((size_of(batch),), network.exits - 1)
    for exit in range(network.exits - 1):
        ranked = scores[exit, staying].sort().values
        middle = (len(ranked) - 1) // 2
        thresholds.append(float(ranked[middle : middle + 2].mean()))  # between two scores
        leaving = staying & (scores[exit] > thresholds[-1])
        leaves_at[leaving] = exit
        staying &= ~leaving
    assert len(leaves_at.unique()) == network.exits
    expected = logits[leaves_at, torch.arange(size_of(batch))]
    rule = ztw.MaxSoftmax(thresholds)
    for rows in torch.arange(size_of(batch)).split(size_of(batch) - 1), torch.arange(3).split(1):
        for chosen in rows:
            result = network.infer(pick(batch, chosen), rule)
            assert result.exit_index.tolist() == leaves_at[chosen].tolist()
            close(result.logits, expected[chosen])


def check_saved(network: ztw.EarlyExitNetwork, batch: Any, folder: Path) -> ztw.EarlyExitNetwork:
    told: list[str] = []
    ztw.save(network, folder, progress=told.append)
    assert told == []
    again, _ = ztw.load(folder)
    with torch.no_grad():
        close(again(batch), network(batch))
    assert again.backbone.inputs == network.backbone.inputs
    check_infer(again, batch)
    return again


def cut(model: nn.Module, example: Any, **how: Any) -> ztw.Backbone:
    backbone = ztw.as_backbone(model.eval(), example=example, **how)
    with torch.no_grad():
        close(backbone(example), first_tensor(call(model, example)))
    return backbone


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture(scope="module")
def text_backbone(encoder) -> ztw.Backbone:
    return cut(encoder, texts(12))


def test_a_text_encoder_is_cut_after_its_blocks(encoder, text_backbone):
    assert text_backbone.feature_shapes == [(12, 16)] * 3
    assert text_backbone.inputs.shapes == {"input_ids": [None], "attention_mask": [None]}
    assert text_backbone.input_shape is None
    with torch.no_grad():
        for length, rows in ((3, 5), (24, 2), (1, 1)):
            batch = texts(length, rows)
            close(text_backbone(batch), encoder(**batch)["logits"])
            for state in text_backbone.features(batch):
                assert state["features"].shape == (rows, length, 16)
                assert torch.equal(state["attention_mask"], batch["attention_mask"])
                assert all(len(value) == rows for value in state.values())


HEADS = [("pool", "mixed"), ("pool", "first"), ("mlp", "mixed"), ("mlp", "first"), ("conv", "mixed")]


@pytest.mark.parametrize(("head", "pooling"), HEADS)
def test_padding_changes_no_logits(head, pooling, text_backbone):
    network = ztw.build_network(text_backbone, "cascade", head=head, pooling=pooling, placement=[0, 2]).eval()
    batch = texts(7)
    padded = {
        "input_ids": torch.cat([batch["input_ids"], torch.randint(50, (ROWS, 5))], 1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.zeros(ROWS, 5, dtype=torch.long)], 1),
    }
    with torch.no_grad():
        close(network(padded), network(batch))
        whole = {name: value[:, :3] for name, value in batch.items()}
        whole["attention_mask"] = torch.ones_like(whole["attention_mask"])
        assert not torch.allclose(network(whole), network(batch))
        # the head by hand
        state = next(iter(network.backbone.features(batch)))
        tokens, mask = seen(state)
        assert torch.equal(mask, batch["attention_mask"])
        means = torch.stack([row[:count].mean(0) for row, count in zip(tokens, mask.sum(1), strict=True)])
        vector: Any = network.heads[0].body
        vector = vector[0] if head == "mlp" else vector
        close(vector((tokens, mask)), vector.norm(tokens[:, 0] if pooling == "first" else means))


@pytest.mark.parametrize("length", [2, 12, 19])
def test_texts_of_every_length_leave_where_their_logits_say(length, text_backbone):
    torch.manual_seed(length)
    check_infer(ztw.build_network(text_backbone, "cascade", head="pool"), texts(length))


def test_a_text_network_is_saved(text_backbone, tmp_path):
    network = ztw.build_network(text_backbone, head="mlp", pooling="first").eval()
    check_saved(network, texts(17), tmp_path / "net")
    with pytest.raises(ztw.ZtwError, match=r"inputs: .*must be a dict of input_ids, attention_mask"):
        network.infer({"input_ids": texts(3)["input_ids"]}, "max_softmax 0.9")
    with pytest.raises(ztw.ZtwError, match=r"attention_mask: shape \(24, 3, 1\), must be \(N, any\)"):
        network.infer({**texts(3), "attention_mask": torch.ones(24, 3, 1)}, "max_softmax 0.9")


def test_two_inputs_by_position(tmp_path):
    torch.manual_seed(0)
    example = (torch.randn(ROWS, 3, 9, 9), torch.randn(ROWS, 5))
    backbone = cut(TwoInputs(), example, at=["layers.0", "layers.1"])
    assert backbone.feature_shapes == [(8,), (8,)]
    network = ztw.build_network(backbone, head="mlp").eval()
    check_infer(network, example)
    check_saved(network, example, tmp_path / "net")
    with pytest.raises(ztw.ZtwError, match="inputs: 1 items, must be a tuple of 2 tensors"):
        network.infer(example[:1], "max_softmax 0.9")
    with pytest.raises(ztw.ZtwError, match="input_0 24, input_1 3 samples, must be the same number"):
        network.infer((example[0], example[1][:3]), "max_softmax 0.9")


def test_stacked_lstms(tmp_path):
    torch.manual_seed(0)
    model = Lstms()
    backbone = cut(model, torch.randint(50, (ROWS, 9)), at=["layers.0", "layers.1"])
    network = ztw.build_network(backbone, head="pool").eval()
    for length in (1, 14):
        ids = torch.randint(50, (ROWS, length))
        with torch.no_grad():
            close(backbone(ids), model(ids))
    check_infer(network, ids)
    check_saved(network, ids, tmp_path / "net")


def test_a_table_of_features(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    backbone = ztw.as_backbone(model, (20,))
    assert backbone.feature_shapes == [(16,), (16,)]
    assert ztw.macs(backbone) == 20 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3
    network = ztw.build_network(backbone, "cascade", head="mlp", width=0.5).eval()
    assert network.heads[0].body[1].out_features == 8  # type: ignore[index, union-attr]
    rows = torch.randn(ROWS, 20)
    check_infer(network, rows)
    assert check_saved(network, rows, tmp_path / "net").backbone.inputs.shapes == {"inputs": [20]}


@pytest.mark.parametrize("head", ["pool", "conv", "mlp"])
def test_a_signal(head, tmp_path):
    torch.manual_seed(0)
    model, example = Signals(), torch.randn(ROWS, 2, 64)
    backbone = cut(model, example, at=["2", "5"])
    assert backbone.feature_shapes == [(8, 30), (8, 13)]
    assert backbone.channels_first == (True, True)
    network = ztw.build_network(backbone, head=head).eval()
    assert network.heads[0].linear.in_features == 8  # type: ignore[union-attr]
    check_infer(network, example)
    again = check_saved(network, example, tmp_path / "net")
    assert again.backbone.channels_first == (True, True)


def test_blocks_that_pass_two_tensors(tmp_path):
    torch.manual_seed(0)
    backbone = cut(Scaled(), torch.randn(ROWS, 8), at=["blocks.0", "blocks.1"])
    example = torch.randn(ROWS, 8)
    states = list(backbone.features(example))
    assert [{name: tuple(value.shape) for name, value in state.items()} for state in states] == [
        {"features": (ROWS, 8), "value_0": (ROWS, 1)}
    ] * 2
    network = ztw.build_network(backbone).eval()
    check_infer(network, example)
    check_saved(network, example, tmp_path / "net")


class Ids(nn.Module):
    """A first stage by hand: embeds, and passes the mask and a sum on."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 6)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = self.words(batch["input_ids"])
        return {"features": tokens, "attention_mask": batch["attention_mask"], "sum": tokens.sum(1)}


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**state, "features": torch.tanh(self.layer(state["features"]) + state["sum"][:, None])}


class Ends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, state: dict[str, Tensor]) -> Tensor:
        return self.fc(state["features"].mean(1) + state["sum"])


def test_stages_by_hand_that_return_dicts(tmp_path):
    torch.manual_seed(0)
    example = texts(6)
    backbone = ztw.Backbone("own", [Ids(), Mixes(), Mixes()], Ends(), example)
    assert backbone.feature_shapes == [(6, 6)] * 3
    network = ztw.build_network(backbone, head="pool").eval()
    check_infer(network, example)
    check_saved(network, example, tmp_path / "net")
    moved = backbone.to("meta")
    assert moved(mapped(example, lambda x: x.to("meta"))).shape == (ROWS, 3)


class Masked(nn.Module):
    """Takes a mask of bools, of which a 1 would be something else."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x * ~hidden))
        return self.fc(x)


def test_bools_stay_bools(tmp_path):
    torch.manual_seed(0)
    example = {"x": torch.randn(ROWS, 6), "hidden": torch.rand(ROWS, 6) > 0.5}
    backbone = cut(Masked(), example, at=["layers.0"])
    network = ztw.build_network(backbone).eval()
    check_infer(network, example)
    check_saved(network, example, tmp_path / "net")
    with pytest.raises(ztw.ZtwError, match="hidden: int64, must be bool"):
        network.infer({**example, "hidden": example["hidden"].long()}, "max_softmax 0.9")
    text = ztw.as_backbone(Lstms(), example=torch.randint(2, (4, 5)), at=["layers.0"])
    given = torch.ones(2, 5, dtype=torch.bool)
    result = ztw.build_network(text).eval().infer(given, "max_softmax 2.0")
    close(result.logits, text.eval()(given.long()))


def test_the_example_must_be_a_batch():
    for example, message in (
        ({}, "example: dict, must be a tensor, or a tuple or dict of tensors"),
        ((torch.zeros(2, 3), torch.zeros(3)), r"example: sizes \[2, 3\], must be one batch size"),
        (torch.zeros(()), r"example: inputs has shape \(\) and dtype float32, must be \(N, ...\)"),
        (torch.zeros(0, 3), r"must be \(N, ...\)"),
        (torch.zeros(2, 3, dtype=torch.complex64), "dtype complex64"),
        ("text", "example: inputs: .*must be a tensor"),
    ):
        with pytest.raises(ztw.ZtwError, match=message) as caught:
            ztw.as_backbone(Lstms(), example=example)
        assert "\n" not in str(caught.value)
    with pytest.raises(ztw.ZtwError, match=r"either input_shape=.* or example="):
        ztw.as_backbone(Lstms(), (3,), example=torch.zeros(2, 3))
