"""The cut model is the model: in training, in place, with shared and frozen weights. What would differ is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import same, state_of
from own_models import Cnn, Encoder, Scaled
from torch import Tensor, nn

import ztw
from ztw.batch import mapped
from ztw.models.exporting import call, first_tensor
from ztw.models.supported import computed_weights

WIDTH, ROWS = 8, 6
EXAMPLE = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


class Steps(nn.Module):
    """Three Linears; a function that each of them, and the classifier, begins with."""

    def __init__(self, before: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.fc, self.before = nn.Linear(WIDTH, 3), before

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.before(self.a(x)))
        return self.fc(self.before(self.c(self.before(x))))


def cut(model: nn.Module, example: Any = EXAMPLE, at: Sequence[str] = ("a", "b")) -> ztw.Backbone:
    backbone = ztw.as_backbone(model, example=example, at=list(at))
    assert backbone.training == model.training
    return backbone


def check(model: nn.Module, example: Any = EXAMPLE, at: Sequence[str] = ("a", "b")) -> ztw.Backbone:
    """The backbone computes what the model does; no stage changes what an exit reads; save and load."""
    backbone = cut(model.eval(), example, at)
    with torch.no_grad():
        states = list(backbone.features(example))
        before = [mapped(state, Tensor.clone) for state in states]
        torch.testing.assert_close(backbone.classifier(states[-1]), first_tensor(call(model, example)))
        for state, kept in zip(states, before, strict=True):
            torch.testing.assert_close(state, kept, rtol=0, atol=0)
    return backbone


def check_saved(backbone: ztw.Backbone, example: Any, folder) -> ztw.EarlyExitNetwork:
    network, told = ztw.build_network(backbone, head="pool").eval(), list[str]()
    ztw.save(network, folder, progress=told.append)
    assert told == []
    again, _ = ztw.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(again(example), network(example))
    return again


def trained(
    model: nn.Module, of: nn.Module, batch: Any
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits, gradients and buffers by value after one step in training mode; `of`: whose weights they are."""
    torch.manual_seed(3)
    logits = first_tensor(call(model, batch) if model is of else model(batch))
    model.zero_grad()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), gradients(model), dict(model.named_buffers())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, weight in model.named_parameters():
        found[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
    return found


def own_names(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the stage."""
    return {
        name.removeprefix("classifier.")
        .removeprefix("stages.")
        .lstrip("0123456789.")
        .replace("linear.", "fc."): value
        for name, value in values.items()
    }


@pytest.mark.parametrize("name", ["cnn", "encoder", "scaled"])
def test_training_is_the_model_s(name):
    torch.manual_seed(0)
    model, at = {
        "cnn": (Cnn(), ["act", "conv3"]),
        "encoder": (Encoder(), ["blocks.0", "blocks.1"]),
        "scaled": (Scaled(), ["blocks.0"]),
    }[name]
    example: Any = {"cnn": torch.randn(5, 3, 16, 16), "scaled": EXAMPLE}.get(name)
    if example is None:
        ids = torch.randint(50, (5, 9))
        example = {
            "input_ids": ids,
            "attention_mask": (torch.arange(9) < torch.tensor([[9, 3, 1, 8, 9]]).T).long(),
        }
    backbone = cut(model.train(), example, at)
    for _ in range(2):
        (logits, grads, buffers) = trained(backbone, model, example)
        (expected, wanted, statistics) = trained(model, model, example)
        torch.testing.assert_close(logits, expected)
        for found, right in ((grads, wanted), (buffers, statistics)):
            assert own_names(found).keys() == right.keys()
            for key, value in own_names(found).items():
                torch.testing.assert_close(value, right[key], msg=key)
        assert name != "cnn" or buffers["stages.0.norm.num_batches_tracked"] > 0
    with torch.no_grad():
        assert not torch.allclose(backbone(example), backbone.eval()(example)) or name == "scaled"


def alpha(x: Tensor) -> Tensor:
    return F.relu_(x) + 1


def viewed(x: Tensor) -> Tensor:
    """Overwrites through a view."""
    x.view(-1, 2)[:, 0].mul_(0.5)
    return torch.tanh(x)


def seen_through(x: Tensor) -> Tensor:
    """Overwrites memory that an older view shows."""
    half = x[:, : WIDTH // 2]
    x.mul_(3.0)
    return torch.tanh(torch.cat([half, x[:, WIDTH // 2 :]], 1))


def pieces(x: Tensor) -> Tensor:
    one, two = x.chunk(2, 1)
    one.mul_(3.0)
    two.relu_()
    return x


def assigned(x: Tensor) -> Tensor:
    x[:, 1:3] = x[:, :2] * 2
    x += 1
    return x.sigmoid()


def filled(x: Tensor) -> Tensor:
    """Builds a matrix in place, of weights of no sample."""
    mask = torch.zeros(WIDTH, WIDTH, device=x.device)
    mask[0] = 1.0
    mask.diagonal().fill_(2.0)
    mask[:, 3] -= 0.5
    return x @ mask


IN_PLACE = [alpha, viewed, seen_through, pieces, assigned, filled]


@pytest.mark.parametrize("before", IN_PLACE, ids=lambda function: function.__name__)
def test_what_works_in_place_reaches_no_exit(before, tmp_path):
    model = Steps(before)
    backbone = check(model)
    if before is assigned:
        check_saved(backbone, EXAMPLE, tmp_path / "net")
    if before is not pieces:  # autograd refuses it in the model, too
        logits, grads, _ = trained(backbone.train(), model, EXAMPLE)
        expected, wanted, _ = trained(model.train(), model, EXAMPLE)
        torch.testing.assert_close(logits, expected)
        for key, value in own_names(grads).items():
            torch.testing.assert_close(value, wanted[key], msg=key)
    with torch.no_grad():
        assert backbone.to("meta")(EXAMPLE.to("meta")).is_meta


class MaskOnce(nn.Module):
    """A matrix that is built in place once, and read after every cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(WIDTH, WIDTH)
        mask[0] = 1.0
        x = self.a(x @ mask)
        mask[1:3, 2] = 2.0
        x = self.b(x @ mask)
        mask.mul_(-1)
        return self.fc(x @ mask)


def test_a_matrix_that_is_built_in_place_is_built_in_every_stage(tmp_path):
    check_saved(check(MaskOnce()), EXAMPLE, tmp_path / "net")


class Names(nn.Module):
    """Modules with names that the parts use themselves, and buffers, constants and attributes of every kind."""

    names: Tensor
    once: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.takes, self.places = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.keys = nn.ModuleDict({"a-b": nn.Linear(WIDTH, WIDTH), "a_b": nn.Linear(WIDTH, WIDTH)})
        self.in_eval, self.fc = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.register_buffer("names", torch.rand(WIDTH))
        self.register_buffer("once", torch.rand(WIDTH), persistent=False)
        self.attribute, self.listed = torch.rand(WIDTH), [torch.rand(WIDTH)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.takes(torch.tanh(self.linear(x)) * self.names)
        x = self.places(x * self.once + self.attribute)
        x = self.keys["a_b"](torch.tanh(self.keys["a-b"](x))) * self.listed[0]
        x = x * torch.tensor([1.0, -1.0] * 4) if self.training else x * torch.tensor([0.5] * 8)
        return self.fc(self.in_eval(x))


def test_names_of_every_kind(tmp_path):
    model = Names()
    backbone = check(model, at=("linear", "takes", "places", "keys.a-b", "keys.a_b"))
    weights = {name.split(".", 2)[-1] for name in backbone.state_dict() if name.startswith("stages.")}
    assert {"linear.weight", "takes.weight", "places.bias"} <= weights
    assert sum(weight.numel() for weight in backbone.parameters()) == sum(
        weight.numel() for weight in model.parameters()
    )
    again = check_saved(backbone, EXAMPLE, tmp_path / "net").backbone
    for network in (backbone, again, copy.deepcopy(again)):
        torch.testing.assert_close(network.train()(EXAMPLE), model.train()(EXAMPLE))
        torch.testing.assert_close(network.eval()(EXAMPLE), model.eval()(EXAMPLE))


class Shared(nn.Module):
    """One weight in two stages, and the embedding as the last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(20, WIDTH)
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(WIDTH, 20, bias=False)
        self.fc.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.b(torch.tanh(self.a(self.words(ids).mean(1))))))


def test_shared_weights_stay_shared(tmp_path):
    model, ids = Shared(), torch.randint(20, (ROWS, 5))
    backbone = check(model, ids)
    assert sum(weight.numel() for weight in backbone.parameters()) == sum(
        weight.numel() for weight in model.parameters()
    )
    grads, wanted = trained(backbone.train(), model, ids)[1], trained(model.train(), model, ids)[1]
    assert sorted(grad.sum().item() for grad in grads.values()) == pytest.approx(
        sorted(grad.sum().item() for grad in wanted.values()), abs=1e-5
    )
    again = check_saved(backbone, ids, tmp_path / "net")
    torch.testing.assert_close(again.backbone(ids), model.eval()(ids))
    one, other = (again.backbone.stages[number].state_dict() for number in (0, 1))
    weights = [value for state in (one, other) for value in state.values() if value.shape == (WIDTH, WIDTH)]
    assert torch.equal(*weights)


def test_frozen_weights_stay_frozen():
    model = Steps()
    for module in (model.a, model.fc):
        module.requires_grad_(False)
    nn.utils.parametrizations.weight_norm(model.b)
    nn.utils.parametrizations.weight_norm(model.c.requires_grad_(False))
    backbone = check(model)
    frozen = {name for name, weight in backbone.named_parameters() if not weight.requires_grad}
    assert {name.rpartition(".")[0].split(".", 1)[-1] for name in frozen} == {"0.a", "c", "fc"}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))
        self.fc = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(torch.tanh(self.inner(torch.tanh(self.b(torch.tanh(self.a(x))))))))


def test_a_module_that_is_called_twice_and_nested_modules():
    model = Twice()
    backbone = check(model, at=("a", "inner.0", "inner"))
    assert len(backbone.stages) == 2, "in eval mode, inner returns what inner.0 does"
    check(model, at=("inner", "inner"))
    with pytest.raises(ztw.ZtwError, match="at='b' is called 2 times, must be once; name another module"):
        cut(model, at=("b",))
    # in training, an exit after `inner` reads what its dropout returned
    backbone = cut(model.train(), at=("inner",))
    (features,) = backbone.features(EXAMPLE)
    assert (features == 0).any()


class Hostile(nn.Module):
    """Does what `how` says between its layers."""

    calls: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc, self.how = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 3),
            how,
        )
        self.register_buffer("calls", torch.zeros(()))
        self.cache: Any = None

    def forward(self, x: Tensor) -> Any:
        x = self.a(x)
        return self.fc(torch.relu(self.b(getattr(self, self.how)(torch.relu(x)))))

    def draws_weights(self, x: Tensor) -> Tensor:
        layer = nn.Linear(WIDTH, WIDTH)
        return F.linear(x, layer.weight.detach())

    def branches(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0.1 else x

    def loops(self, x: Tensor) -> Tensor:
        for _ in range(int(x.sum())):
            x = x + 1
        return x

    def counts(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls

    def remembers(self, x: Tensor) -> Tensor:
        self.cache = x if self.cache is None else x + self.cache.mean(0)
        return self.cache

    def leaves_torch(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)

    def raises_for_export(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise KeyError("no\nway")
        return x

    def decides_by_batch(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[0] > 2 else x

    def decides_by_one(self, x: Tensor) -> Tensor:
        return x if x.shape[0] == 1 else x + 1

    def needs_two(self, x: Tensor) -> Tensor:
        return x.squeeze()[:, :] + 0

    def autocasts(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.b(x)

    def mixes_samples(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "draws_weights",
            "differ from the original's by up to .*, because it draws random numbers or remembers",
        ),
        ("branches", r"torch.export cannot follow its forward \(.*values of tensors.*stages=\[...\]"),
        ("loops", r"torch.export cannot follow its forward \(.*stages=\[...\]"),
        ("counts", "differ from the original's by up to .*, because it draws random numbers or remembers"),
        ("remembers", r"(torch.export cannot follow|differ from the original's)"),
        ("leaves_torch", r"torch.export cannot follow its forward \(.*stages=\[...\]"),
        ("raises_for_export", r"torch.export cannot follow its forward \('no.*way'\); cut it by hand"),
        (
            "decides_by_batch",
            r"torch.export cannot follow its forward \(its forward decides by the number of samples\)",
        ),
        (
            "decides_by_one",
            r"differ from the original's for inputs of \(1, 8\), because its forward decides by a size",
        ),
        ("needs_two", "cannot take a batch of one sample"),
        ("autocasts", r"torch.export cannot follow its forward \(.*torch.autocast\)"),
    ],
)
def test_what_would_differ_is_refused(how, message):
    model = Hostile(how)
    before, names = state_of(model), set(vars(model))
    with pytest.raises(ztw.ZtwError, match=rf"^Hostile: .*{message}") as caught:
        cut(model, at=("a",))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert same(before, state_of(model))
    assert names == set(vars(model))
    assert model.training
    assert model.cache is None
    assert not any(module._forward_hooks for module in model.modules())


class Sized(nn.Module):
    """Texts; decides by their length."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.words, self.a, self.b, self.fc = (
            nn.Embedding(9, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )
        self.places, self.how = nn.Parameter(torch.randn(12, 8)), how

    def forward(self, ids: Tensor) -> Tensor:
        x, length = self.words(ids), ids.shape[1]
        if self.how == "odd" and length % 2:
            x = x * 2
        if self.how == "long" and length > 4:
            x = x * 2
        if self.how == "one" and length == 1:
            x = x * 2
        if self.how == "square" and length == ids.shape[0]:
            x = x * 2
        if self.how == "places":
            x = x + self.places[:length]
        if self.how == "training" and self.training and length > 4:
            x = x * 2
        return self.fc(torch.tanh(self.b(torch.tanh(self.a(x)).mean(1))))


@pytest.mark.parametrize(
    ("how", "length", "allowed"),
    [
        ("", 5, "any"),
        ("odd", 5, "5"),
        ("long", 6, "5 or more"),
        ("long", 3, "1 to 4"),
        ("places", 5, "1 to 12"),
    ],
)
def test_a_length_by_which_a_forward_decides(how, length, allowed, tmp_path):
    model = Sized(how).eval()
    network = ztw.build_network(cut(model, torch.randint(9, (4, length)), ("a",))).eval()
    ztw.save(network, tmp_path / "net")
    for one in (network, ztw.load(tmp_path / "net")[0]):
        assert one.backbone.inputs.inputs[0].side(0) == allowed
        for other in (1, 2, 4, 5, 6, 7, 12, 13):
            ids = torch.randint(9, (2, other))
            fits = (
                other == 5
                if how == "odd"
                else {"5 or more": other > 4, "1 to 4": other < 5, "1 to 12": other < 13}
            )
            if fits if isinstance(fits, bool) else fits.get(allowed, True):
                result = one.infer(ids, "max_softmax 2.0")
                torch.testing.assert_close(result.logits, model(ids), atol=1e-5, rtol=1e-4)
            else:
                with pytest.raises(ztw.ZtwError, match=rf"shape \(2, {other}\), must be \(N, {allowed}\)"):
                    one.infer(ids, "max_softmax 2.0")


@pytest.mark.parametrize(("how", "length"), [("one", 2), ("square", 3), ("square", 5)])
def test_a_size_that_only_chance_would_find_is_refused(how, length):
    with pytest.raises(ztw.ZtwError, match=r"decides by (a size|the number of samples)"):
        cut(Sized(how), torch.randint(9, (4, length)), ("a",))


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


@torch.no_grad()
def without_gradient(x: Tensor) -> Tensor:
    return torch.tanh(x)


class Noise(nn.Module):
    """One number for the whole batch, in training, in two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(1) if self.training else torch.ones(1)
        return self.fc(self.b(self.a(x * noise) * noise) * noise)


@pytest.mark.parametrize(
    "model", [Steps(StraightThrough.apply), Steps(without_gradient), Noise(), Sized("training")], ids=type
)
def test_a_model_that_cannot_be_trained_in_parts_says_so(model):
    example = torch.randint(9, (4, 3)) if isinstance(model, Sized) else EXAMPLE
    backbone = check(model, example, ("a",))
    with pytest.raises(
        ztw.ZtwError, match=r"the backbone cannot be trained: .*; train the exits with regime='separate'"
    ):
        backbone.train()(example)


class RowNoise(Noise):
    """One number for every sample: it is carried from stage to stage."""

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.empty(x.shape[0], 1).uniform_() if self.training else torch.ones(x.shape[0], 1)
        return self.fc(self.b(self.a(x * noise) * noise) * noise)


class Anyhow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, **inputs: Tensor) -> Any:
        x = torch.relu(self.b(torch.relu(self.a(inputs["torch"] + inputs["getattr"]))))
        return (self.fc(x), x)


def test_keywords_of_any_name(tmp_path):
    example = {"torch": EXAMPLE, "getattr": EXAMPLE + 1}
    check_saved(check(Anyhow(), example), example, tmp_path / "net")


def test_a_model_without_weights_or_gradients():
    model = Steps().requires_grad_(False)
    with torch.inference_mode():
        backbone = cut(model)
    assert not any(weight.requires_grad for weight in backbone.parameters())
    torch.testing.assert_close(backbone(EXAMPLE), model(EXAMPLE))


class Observed(Steps):
    """With everything that a copy could disturb."""

    def __init__(self) -> None:
        super().__init__(alpha)
        self.norm, self.drop = nn.BatchNorm1d(WIDTH), nn.Dropout(0.5, inplace=True)
        self.register_buffer("kept", torch.rand(2), persistent=False)
        self.a.requires_grad_(False)
        self.drop.eval()
        for made in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
            made(self.c)
        nn.utils.prune.l1_unstructured(self.b, "weight", 0.5)
        self.fails, self.calls = False, 0
        self.norm.register_forward_hook(lambda part, given, output: output * 2)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(self.drop(self.norm(x)))
        return -x if self.fails and x.sum() > 0 else x


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_stays_as_it_is(training, fails):
    model = Observed().train(training)
    model.fails = fails
    model.drop.eval()
    model(EXAMPLE).sum().backward()
    kept = copy.deepcopy(model, computed_weights([model]))
    for weight, other in zip(model.parameters(), kept.parameters(), strict=True):
        other.grad = None if weight.grad is None else weight.grad.clone()
    rng, types = torch.get_rng_state(), [type(module) for module in model.modules()]
    if fails:
        with pytest.raises(ztw.ZtwError, match=r"torch.export cannot follow"):
            cut(model)
    else:
        backbone = cut(model)
        with torch.no_grad():
            for weight in backbone.parameters():
                weight.add_(1)
    assert torch.equal(torch.get_rng_state(), rng)
    assert types == [type(module) for module in model.modules()]
    assert same(state_of(model), state_of(kept))
    assert [module.training for module in model.modules()] == [module.training for module in kept.modules()]
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
        assert [len(getattr(module, hooks)) for module in model.modules()] == [
            len(getattr(module, hooks)) for module in kept.modules()
        ]
    for (name, weight), (key, other) in zip(model.named_parameters(), kept.named_parameters(), strict=True):
        assert name == key
        assert weight.requires_grad == other.requires_grad
        assert (weight.grad is None) == (other.grad is None)
        assert weight.grad is None or torch.equal(weight.grad, other.grad)  # type: ignore[arg-type]
    assert vars(model).keys() == vars(kept).keys()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(EXAMPLE), kept.eval()(EXAMPLE))
