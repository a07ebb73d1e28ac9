"""The whole of params.yaml: types, ranges and defaults of its keys, and what each key does.

The sections about data are in ``config/data.py``, those about policies in ``config/presets.py``.
"""

import difflib
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ospo.config.algorithms import Algorithm
from ospo.config.data import Data, Sample
from ospo.config.formats import DataSet
from ospo.config.presets import Preset
from ospo.config.retrievers import Retrievers
from ospo.config.section import Refused, Section
from ospo.errors import ConfigError

Dataset = str
"""A data set's name: a key of ``data`` in params.yaml."""
Answer = Literal["rewrite", "expand"]


# Measures of ir_measures' notation that a reward may be; anything else names a function.
RANKED_MEASURE = re.compile(r"(?P<kind>nDCG|RR|R|AP)(?:@(?P<cut>[1-9][0-9]{0,6}))?")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class Reward(Section):
    """The search reward."""

    measure: str = Field(
        "nDCG",
        description="What a ranking is worth in training: nDCG (at depth k), nDCG@5, RR@10, R@50, "
        "AP (ir_measures' notation), or your.module:function. Evaluation has its own measures.",
    )
    k: int = Field(10, ge=1, description="Depth of the reward's nDCG@k, in ranks.")
    whole: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of nDCG over the whole pool in the reward of training, the rest nDCG@k: "
        "it also answers to items that stay outside the first k ranks.",
    )
    cache_texts: int = Field(
        200_000,
        ge=0,
        description="Largest number of (request, text) pairs whose reward is kept in memory.",
    )

    @field_validator("measure")
    @classmethod
    def _known(cls, text: str) -> str:
        named = RANKED_MEASURE.fullmatch(text)
        if (named and (named["cut"] or named["kind"] != "R")) or _FUNCTION.fullmatch(text):
            return text
        raise Refused(
            "is no measure of a reward",
            "write nDCG, or nDCG@10, RR@10, R@50, AP, or your.module:function",
        )


class Training(Section):
    """Which requests are trained on."""

    only_with_history: bool = Field(
        False,
        description="Train only on requests whose shopper bought something of the requested type "
        "before: there a policy has something to add.",
    )


class Credit(Section):
    """How one reward becomes credit for segments, and credit becomes token advantages."""

    segments: Literal["phrases", "delimiters", "sentences", "tokens"] = Field(
        "phrases", description="Pieces of an answer that receive credit: the players of the game."
    )
    unions: Literal["none", "sentences", "clauses"] = Field(
        "none",
        description="Groups of segments that join coalitions together (Owen values); none gives "
        "Shapley values.",
    )
    estimator: Literal[
        "auto", "exact", "contiguous", "permutation", "stratified", "kernel", "bayes", "surrogate"
    ] = Field(
        "auto",
        description="How credit is computed from coalition values; auto is exact where the budget "
        "allows it, then surrogate or bayes.",
    )
    window: int = Field(
        8,
        ge=1,
        description="Longest coalition of neighbouring segments of the estimator contiguous, in "
        "segments.",
    )
    budget: int = Field(
        32,
        ge=2,
        description="Coalitions evaluated per completion, the empty and the full one included.",
    )
    redistribution: Literal[
        "paper-prop", "paper-rank", "hybrid", "signed-prop", "additive", "to-go"
    ] = Field("to-go", description="How credit becomes token advantages (docs/credit.md).")
    alpha: float = Field(
        1.0,
        ge=0,
        description="Weight of the credit term (to-go, additive) or of the proportional part "
        "(hybrid).",
    )
    discount: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Factor, per later phrase, on the credit of later phrases that a phrase "
        "answers for (to-go).",
    )
    clip: float = Field(
        2.0,
        gt=0,
        description="Largest distance of a token's advantage from 0, in standard deviations of the "
        "group's advantages.",
    )

    @model_validator(mode="after")
    def _hybrid(self) -> "Credit":
        if self.redistribution == "hybrid" and self.alpha >= 1:
            raise Refused(
                f"is {self.alpha:g}, with which hybrid has no uniform part",
                "set credit.alpha=0.7, the paper's, or choose paper-prop",
                "alpha",
            )
        return self


class Evaluation(Section):
    """Evaluation on held-out requests."""

    max_requests: int = Field(
        400,
        ge=0,
        description="Largest number of held-out requests that are scored, chosen by seeded hash; 0 "
        "scores all.",
    )
    batch_size: int = Field(64, ge=1, description="Requests answered per call of the policy.")
    samples: int = Field(
        0,
        ge=0,
        description="Answers per request also drawn at the training temperature, beside the greedy "
        "one.",
    )
    catalogue: bool = Field(
        True, description="Also search the whole catalogue, not the candidate pools alone."
    )
    resamples: int = Field(
        10_000,
        ge=100,
        description="Number of resamples of the bootstrap and of the randomisation test.",
    )


class Tracking(Section):
    """Where MLflow keeps runs and registered models."""

    uri: str = Field("sqlite:///mlflow.db", description="Address of MLflow's store or server.")
    experiment: str = Field("ospo", description="Name of the MLflow experiment of all runs.")


# Sections and keys that data preparation, DVC or the registry read for all data sets alike.
FOR_ALL = ("seed", "data", "sample", "tracking", "overrides")


class Config(Section):
    """The whole of params.yaml."""

    seed: int = Field(
        0,
        ge=0,
        le=2**31 - 1,  # numpy's legacy generator, which the trainer seeds, takes 32 bits
        description="Seed of all random choices, in data, training and evaluation.",
    )
    data: Data = Field(description="The data sets: raw folders, split and candidate pools.")
    sample: Sample = Field(Sample(), description="Sizes of the built-in sample shops.")
    retrievers: Retrievers = Field(
        Retrievers(), description="The retrievers of training and of evaluation."
    )
    reward: Reward = Field(Reward(), description="The search reward: its cut-off and its memory.")
    credit: Credit = Field(Credit(), description="From a reward to token advantages.")
    context: int = Field(
        0,
        ge=0,
        le=10,
        description="Titles of the request's first hits under the training retriever, in the whole "
        "catalogue, that a policy's prompt shows; 0: none.",
    )
    answer: Answer = Field(
        "rewrite",
        description="What a policy's answer is: the search text in place of the request (rewrite), "
        "or what is added to the request (expand).",
    )
    training: Training = Field(Training(), description="Which requests are trained on.")
    policy: str = Field("nano", description="Name of the preset that is trained.")
    algorithms: list[Algorithm] = Field(
        ["grpo", "ospo"],
        min_length=1,
        description="Algorithms that train a policy each, all from the SFT policy.",
    )
    presets: dict[str, Preset] = Field(
        description="Policies with their training settings, by name."
    )
    evaluation: Evaluation = Field(Evaluation(), description="Evaluation on held-out requests.")
    tracking: Tracking = Field(Tracking(), description="Where runs and models are recorded.")
    overrides: dict[str, list[str]] = Field(
        {},
        description="Data set → KEY=VALUE texts that replace values of this file where that data "
        "set is trained on or evaluated; `make real` writes them.",
    )

    @model_validator(mode="after")
    def _overrides(self) -> "Config":
        for name, texts in self.overrides.items():
            if name not in self.data.sets:
                fix = f"choose one of {', '.join(self.data.sets)}"
                raise Refused("names no data set", fix, f"overrides.{name[:60]}")
            for text in texts:
                if text.partition("=")[0].strip().partition(".")[0] in FOR_ALL:
                    fix = "change it for all data sets, outside of overrides"
                    raise Refused(f"{text[:60]!r} is one for all", fix, f"overrides.{name}")
        return self

    @model_validator(mode="after")
    def _policy(self) -> "Config":
        if self.policy not in self.presets:
            close = difflib.get_close_matches(self.policy, self.presets, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise Refused(
                f"names no preset {self.policy[:60]!r}",
                f"{hint}choose one of {', '.join(self.presets)}"
                if self.presets
                else "describe a policy under presets",
                "policy",
            )
        return self

    @field_validator("algorithms")
    @classmethod
    def _algorithms(cls, algorithms: list[Algorithm]) -> list[Algorithm]:
        if len(set(algorithms)) < len(algorithms):
            raise Refused("names an algorithm twice", "name each once")
        return algorithms

    @property
    def datasets(self) -> list[Dataset]:
        """The names of the data sets, in the order of params.yaml."""
        return list(self.data.sets)

    def dataset(self, name: Dataset) -> DataSet:
        """The section of a data set. ConfigError where params.yaml names no such one."""
        if name not in self.data.sets:
            close = difflib.get_close_matches(name, self.datasets, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(
                "params.yaml",
                "data",
                f"names no data set {name[:60]!r}",
                f"{hint}name one of {', '.join(self.datasets)}, or add it: ospo data add",
            )
        return self.data.sets[name]

    @property
    def policies(self) -> list[str]:
        """The trained policies that are evaluated: the SFT checkpoint and what each algorithm made
        of it.
        """
        return ["sft", *self.algorithms]

    @property
    def preset(self) -> Preset:
        """The chosen policy's preset."""
        return self.presets[self.policy]
