"""params.yaml as frozen, validated objects. This package is the only reader of params.yaml."""

from ospo.config.algorithms import ALGORITHMS, LABELS, Algorithm
from ospo.config.data import (
    NO_QUERIES,
    Data,
    EsciData,
    HmData,
    Pool,
    Sample,
    SampleEsci,
    SampleHm,
    Split,
)
from ospo.config.loading import edit_params, load_config, parse_override, set_value
from ospo.config.presets import Dpo, Model, Preset, Rft, Rl, Sft, Updates
from ospo.config.schema import (
    DATASETS,
    Answer,
    Config,
    Credit,
    Dataset,
    Evaluation,
    Retrievers,
    Reward,
    Tracking,
)
from ospo.config.section import Section

__all__ = [
    "ALGORITHMS",
    "DATASETS",
    "LABELS",
    "NO_QUERIES",
    "Algorithm",
    "Answer",
    "Config",
    "Credit",
    "Data",
    "Dataset",
    "Dpo",
    "EsciData",
    "Evaluation",
    "HmData",
    "Model",
    "Pool",
    "Preset",
    "Retrievers",
    "Reward",
    "Rft",
    "Rl",
    "Sample",
    "SampleEsci",
    "SampleHm",
    "Section",
    "Sft",
    "Split",
    "Tracking",
    "Updates",
    "edit_params",
    "load_config",
    "parse_override",
    "set_value",
]
