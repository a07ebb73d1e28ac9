"""The world of ``benchmarks.controlled``: requests whose targets are known, and the truth about
every phrase.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(".benchmarks/controlled")
CUES, SHOWN, DISTRACTORS, REQUESTS = 24, 7, 36, 4000
HARM, TEACHER, WORDS = 0.5, 0.8, (9, 13)
# Of one unit of utility, in units of the reward: about the slope of R where the warm start stands.
WORTH = 0.06
# What a finished run depends on beside its settings.
WORLD = (CUES, SHOWN, DISTRACTORS, HARM, TEACHER, *WORDS)


class World:
    """Cues, attributes and requests of one seed, and the truth about every text."""

    def __init__(self, seed: int):
        rng = np.random.default_rng([seed, 11])
        onset, vowel, coda = (
            "b d f g k l m n p r s t v z".split(),
            "a e i o u".split(),
            "l n r s t k".split(),
        )
        syllables = [a + b + c for a in onset for b in vowel for c in coda]
        words = [syllables[i] for i in rng.permutation(len(syllables))]
        self.cues, self.attributes = words[:CUES], words[CUES : 2 * CUES + DISTRACTORS]
        self.shown_RK = np.stack([rng.permutation(CUES)[:SHOWN] for _ in range(REQUESTS)])

    def query(self, row: int) -> str:
        """The request's words."""
        return " ".join(self.cues[i] for i in self.shown_RK[row])

    def truth(self, phrases: Sequence[str], row: int) -> np.ndarray:
        """(n,) what each phrase adds to the utility, in order: targets +1, anything else and
        repeats −HARM.
        """
        targets = {self.attributes[i] for i in self.shown_RK[row]}  # attribute i belongs to cue i
        values = []
        for phrase in phrases:
            word = phrase.strip(" ,.")
            values.append(1.0 if word in targets else -HARM)
            targets.discard(word)
        return np.array(values)

    def reward(self, texts: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """(B,) rewards; a coalition's text joins its phrases by spaces, so words are what
        counts.
        """
        values = []
        for text, row in zip(texts, rows, strict=True):
            words = text.replace(",", " ").split()
            utility = float(self.truth(words, row).sum())
            values.append(1 / math.log2(2 + 60 * math.exp(-0.7 * utility)) if words else 0.0)
        return np.array(values)

    def teacher(self, row: int, rng: np.random.Generator) -> str:
        """A poor answer: 9 to 12 attributes, a target with probability TEACHER each, repeats left
        out.
        """
        words = [
            self.attributes[int(rng.choice(self.shown_RK[row]))]
            if rng.random() < TEACHER
            else self.attributes[int(rng.integers(len(self.attributes)))]
            for _ in range(int(rng.integers(*WORDS)))
        ]
        return ", ".join(dict.fromkeys(words))

    def data(self) -> Any:
        """The requests as prepared data; there is no catalogue to search."""
        import polars as pl

        from ospo.data.dataset import PreparedData, Request, Requests

        requests = [
            Request(f"r{row}", "train", self.query(row), "", (), "") for row in range(REQUESTS)
        ]
        nothing = np.zeros((REQUESTS, 1))
        return PreparedData(
            "controlled",
            FOLDER,
            pl.DataFrame(),
            Requests.of(requests),
            nothing.astype(int),
            nothing,
        )


class TrueWorth:
    """Stands in for the credit engine and knows the answer: each phrase's worth, which no estimator
    can better.
    """

    def __init__(self, engine: Any, world: World):
        self.engine, self.world = engine, world

    def credit(self, answers: Sequence[str], rows: Sequence[int], *others: Any) -> list[Any]:
        """The engine's credits with the truth in their place, which is also what each phrase
        adds.
        """
        out = []
        found = self.engine.credit(answers, rows, *others)
        for credit, row in zip(found, rows, strict=True):
            worth_N = self.world.truth(credit.segmentation.units, row) * WORTH
            out.append(replace(credit, phi_N=worth_N, added_N=worth_N))
        return out
