"""Score an exit rule of one's own against ZTW's on the same published logits: no training, seconds."""

import argparse

import my_parts  # noqa: F401  registers the rule "margin"
import torch

import ztw


def right_at(budget: float, rule: str, predictions: ztw.Predictions, ensemble: ztw.Ensemble) -> torch.Tensor:
    """Which test images a rule answers rightly (N,); its threshold is chosen on the validation images."""
    logits, labels = predictions.validation
    curve = ztw.sweep(ensemble(logits), labels, predictions.cost, rule)
    (threshold,) = ztw.parameter_at_budget(curve, [budget], predictions.base_cost).tolist()
    logits, labels = predictions.test
    answers = ensemble(logits)
    _, leaves_at = ztw.simulate_exits(answers, f"{rule} {threshold}")
    return answers[leaves_at, torch.arange(len(labels))].argmax(-1) == labels


def main(name: str) -> None:
    """Both rules decide on ZTW's ensemble of the same exits; name: of published predictions."""
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
        "name", help="of published predictions, e.g. quick/fashion_mnist/resnet20/seed0/cascade_detached"
    )
    try:
        main(parser.parse_args().name)
    except ztw.ZtwError as error:
        parser.error(str(error))
