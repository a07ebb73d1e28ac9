"""How a policy's answers are drawn, and the key under which a draw is repeatable."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLimits:
    """How long a policy's prompts and answers may be, in tokens: what it was trained with."""

    prompt: int
    answer: int


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn: the likeliest token, or a draw at a temperature, and nothing else.

    ``temperature`` 0 is greedy; above it, tokens are drawn from softmax(logits / temperature).
    ``sample`` numbers independent draws under one ``seed``. Defaults that a model brings along
    (``generation_config.json``: repetition penalty, top-k, top-p, temperature) take no part.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0

    @property
    def key(self) -> str:
        """Names the decoding in the cache; greedy decoding depends on neither seed nor sample."""
        if self.temperature == 0:
            return f"greedy-{self.max_new_tokens}"
        return f"t{self.temperature:g}-seed{self.seed}-{self.sample}-{self.max_new_tokens}"


def digest(text: str) -> str:
    """32 hex digits that identify a rendered prompt, or a draw."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def draw_seed(seed: int, sample: int, prompt_key: str) -> int:
    """Seed of the noise of one draw: depends on ``seed``, ``sample`` and the prompt alone.

    So a sampled answer is the same whoever asks for it, and whatever else is in the batch.
    """
    return int(digest(f"{seed}/{sample}/{prompt_key}")[:15], 16)
