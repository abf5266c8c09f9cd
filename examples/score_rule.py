"""Compare your own exit rule with ZTW's on published logits, in seconds and without training."""

import argparse

import my_parts  # noqa: F401  registers the rule "margin"
import torch

import ztw


def right_at(budget: float, rule: str, predictions: ztw.Predictions, ensemble: ztw.Ensemble) -> torch.Tensor:
    """Return which test images are classified correctly (N,), with the threshold chosen on the validation images."""
    logits, labels = predictions.validation
    curve = ztw.sweep(ensemble(logits), labels, predictions.cost, rule)
    (threshold,) = ztw.parameter_at_budget(curve, [budget], predictions.base_cost).tolist()
    logits, labels = predictions.test
    answers = ensemble(logits)
    _, leaves_at = ztw.simulate_exits(answers, f"{rule} {threshold}")
    return answers[leaves_at, torch.arange(len(labels))].argmax(-1) == labels


def main(name: str) -> None:
    """Compare both rules on ZTW's ensemble at three budgets.

    Args:
        name: of published predictions.
    """
    predictions = ztw.load_predictions(name)
    ensemble = ztw.fit_ensemble(*predictions.validation)
    for budget in (0.25, 0.5, 0.75):
        own = right_at(budget, "margin", predictions, ensemble)
        known = right_at(budget, "max_softmax", predictions, ensemble)
        found = ztw.paired_difference(own, known)
        print(
            f"budget {budget:.0%}: margin {own.double().mean():.2%}, max_softmax {known.double().mean():.2%},"
            f" difference {found.difference:+.2%} [{found.low:+.2%}, {found.high:+.2%}]"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "name", help="published predictions, e.g. quick/fashion_mnist/resnet20/seed0/cascade_detached"
    )
    try:
        main(parser.parse_args().name)
    except ztw.ZtwError as error:
        parser.error(str(error))
