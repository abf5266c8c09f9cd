"""The advice for a model: what was measured, and which option it recommends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztw.evaluation.advice_option import Option
from ztw.evaluation.advice_rule import noise_of, recommend
from ztw.evaluation.advice_table import table
from ztw.extras import need

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Advice:
    """What `advise` measured and recommends. `print` shows it as a table.

    Attributes:
        options: all options, from the simplest to the most complex; those that failed have a reason.
        best: the recommended option.
        sentence: the recommendation in words, with what the samples cannot tell.
        samples: number of held-out samples.
        setting: batch size and threads, in words.
    """

    options: tuple[Option, ...]
    best: Option
    sentence: str
    samples: int
    setting: str

    @classmethod
    def of(cls, options: Sequence[Option], samples: int, allowed_loss: float, setting: str) -> Advice:
        """Decide between options; the first ones are those of the model as it is."""
        best, sentence = recommend(options, samples, allowed_loss)
        return cls(tuple(options), best, sentence, samples, setting)

    @property
    def noise(self) -> float:
        """Differences of accuracy below this are noise, with these held-out samples."""
        return noise_of(self.options, self.samples)

    def to_frame(self) -> pd.DataFrame:
        """Return the options as a table, one row each. Raises ZtwError if pandas is not installed."""
        need("Advice.to_frame", "workflow", "pandas")
        import pandas as pd

        return pd.DataFrame(
            {
                "option": option.name,
                "runtime": option.runtime,
                "accuracy": option.accuracy,
                "loss": option.loss.difference if option.loss else None,
                "loss_low": option.loss.low if option.loss else None,
                "loss_high": option.loss.high if option.loss else None,
                "macs": option.macs,
                "ms": option.ms,
                "speed_up": option.speed_up,
                "reason": option.reason,
            }
            for option in self.options
        )

    def __str__(self) -> str:
        about = f"{self.samples} held-out samples, {self.setting}; * = recommended"
        return table(self.options, self.best, about, self.sentence)
