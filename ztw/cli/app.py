"""The command `ztw`: its arguments and its help. A command imports what it needs when it runs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ztw.errors import ZtwError
from ztw.extras import extra_of, need
from ztw.progress import describe
from ztw.version import __version__


class OneLineErrors(TyperGroup):
    """Prints an error that a user can fix as one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. An error ends the process with status 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # e.g. `ztw predict ... | head`; typer ends quietly
            raise
        except (ZtwError, OSError) as error:
            typer.echo(f"error: {describe(error)}", err=True)
        except ImportError as error:
            package = str(error.name).partition(".")[0]
            if (extra := extra_of(package)) is None:
                raise
            typer.echo(f"error: the package {package} is not installed; pip install 'ztw[{extra}]'", err=True)
        raise typer.Exit(1)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Rule = Annotated[
    str | None,
    typer.Option(help="Exit rule with its threshold, e.g. 'max_softmax 0.9'.  [default: the saved rule]"),
]
Budget = Annotated[
    str | None,
    typer.Option(help="For a network of a study: load its rule for this budget, e.g. 0.5 or max."),
]
Crop = Annotated[
    bool,
    typer.Option("--crop", help="Crop the centre of each image, as for ImageNet, instead of resizing it."),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ztw {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Early exits for neural networks: easy samples leave a network early, and the rest is not computed.

    \b
    A first tour:
      ztw doctor                                check this machine
      ztw advise my-network photos              do early exits pay for a model?
      ztw predict photos --network my-network   classify images, and see what exits save
      ztw export my-network my-network.onnx     one ONNX file that stops early
      ztw report results/quick                  the report of a study

    `ztw COMMAND --help` explains a command. Studies run with `make reproduce`.
    """


@app.command()
def doctor() -> None:
    """Check this machine, and say what to do.

    Looks at hardware, precision, memory, disks, data sets, optional packages, and the MLflow databases in results/ of
    the current folder. A line "->" says what to do. The exit status is 1 if there is a problem. Nothing is changed.

    \b
    Example:
      ztw doctor
    """
    from ztw.cli.doctor import findings, shown

    found = findings(Path("results"))
    typer.echo("\n".join(map(shown, found)))
    if any(one.kind == "problem" for one in found):
        raise typer.Exit(1)


@app.command()
def advise(
    model: Annotated[str, typer.Argument(help="Folder of a saved network, or the name of a model.")],
    images: Annotated[Path, typer.Argument(help="Folder with train/ and test/, one folder per class each.")],
    weights: Annotated[
        str | None,
        typer.Option(help="For a name: file of its trained weights; for torchvision's models also DEFAULT."),
    ] = None,
    smaller: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a saved smaller network to compare with. May be repeated."),
    ] = None,
    size: Annotated[int, typer.Option(help="For a name: side of the images in pixels.")] = 224,
    allowed_loss: Annotated[float, typer.Option(help="Largest loss of accuracy, as a share.")] = 0.01,
    batch_size: Annotated[int, typer.Option(help="Images per call that is timed.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads per call.")] = 1,
    epochs: Annotated[float | None, typer.Option(help="Training of the exits.  [default: 300 steps]")] = None,
    save: Annotated[Path | None, typer.Option(help="Folder for the recommended option.")] = None,
    crop: Crop = False,
) -> None:
    """Measure whether early exits pay for a model.

    Compares the model as it is, int8, smaller networks, the model cut after one exit, early exits and cascades, on this
    machine, and recommends the fastest. The images in train/ train the exits. The images in test/ must not have trained
    the model.

    MODEL is a folder that `ztw.save` has written (its backbone is used), or a name: one of `ztw.list_backbones()`, such
    as torchvision/resnet18, or timm/NAME. A model by its name needs --weights.

    \b
    Examples:
      ztw advise my-network photos
      ztw advise torchvision/resnet18 photos --weights resnet18.safetensors --smaller my-small-network
      ztw advise timm/vit_tiny_patch16_224 photos --weights vit.pth --allowed-loss 0.005 --save what-runs
    """
    from ztw.cli.advise import advice_for

    found = advice_for(
        model, images, weights, smaller or [], size, crop, allowed_loss, batch_size, threads, epochs
    )
    typer.echo(found)
    if save is not None:
        found.best.save(save)
        typer.echo(f"\nsaved '{found.best.name}' in {save}")


@app.command()
def predict(
    images: Annotated[Path, typer.Argument(help="An image, or a folder of images.")],
    network: Annotated[Path, typer.Option(help="Folder of a saved network.")],
    rule: Rule = None,
    budget: Budget = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    crop: Crop = False,
) -> None:
    """Classify images, and show what early exits save.

    Each image has a row: its class, the exit where it leaves, and the saved share of MACs (multiply-accumulate
    operations) and of time, against the network without exits. Times are measured on this machine, one image at a time.
    A negative share means that the exits cost more than they save.

    \b
    Examples:
      ztw predict photos --network my-network
      ztw predict cat.png --network my-network --rule "max_softmax 0.8"
      ztw predict photos --network results/quick/fashion_mnist/resnet20/seed0/networks/ztw --budget 0.5
    """
    from ztw.cli.predict import lines

    for line in lines(images, network, rule, budget, batch_size, device, crop):
        typer.echo(line)


@app.command()
def export(
    network: Annotated[Path, typer.Argument(help="Folder of a saved network.")],
    out: Annotated[Path, typer.Argument(help="The ONNX file to write.")],
    rule: Rule = None,
    budget: Budget = None,
    int8: Annotated[
        Path | None, typer.Option(help="Quantise to int8, calibrated with the images in this folder.")
    ] = None,
    crop: Crop = False,
) -> None:
    """Write a network as one ONNX file that stops early.

    ztw.OnnxRunner runs the file, and so does any other runtime for ONNX. Quantising changes the exits' scores, so
    choose new thresholds for a file in int8 (ztw.choose_threshold).

    \b
    Examples:
      ztw export my-network my-network.onnx
      ztw export my-network my-network.onnx --rule "max_softmax 0.8"
      ztw export results/quick/fashion_mnist/resnet20/seed0/networks/ztw small.onnx --budget 0.25
      ztw export my-network my-network-int8.onnx --int8 photos/train
    """
    from ztw.cli.export import write

    typer.echo(write(network, out, rule, budget, int8, crop))


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study, e.g. results/quick.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write.  [default: report.html in STUDY]")
    ] = None,
) -> None:
    """Write the report of a study as one HTML file.

    The file has the tables and figures of the study, and loads nothing from the network.

    \b
    Examples:
      ztw report results/quick
      ztw report results/reference/quick --out quick.html
    """
    need("ztw report", "workflow")
    written = import_module("ztw.reporting.report").write_report(study, out)
    typer.echo(f"{written}: open it in a browser")
