"""SmolLM2-135M, a real instruct model with an adapter: the same answers wherever it is asked."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT

from ospo.config import load_config
from ospo.data.request import Purchase, Request
from ospo.evaluation.completions import CachedPolicy
from ospo.policy.decoding import Decoding
from ospo.policy.generate import Generator, render
from ospo.policy.text import search_text
from ospo.policy.weights import create_policy, save_policy
from ospo.serving.rewriter import Rewriter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TOKENS = 24
REQUESTS = [
    Request(query=query, history=history)
    for query in ("red dress", "gift for a coffee lover", "something warm for the mountains")
    for history in ((), (Purchase(name="Linen shirt", type="Shirt", colour="Blue"),))
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preset's policy as training would leave it: an adapter that is no longer fresh."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the converted weights are kept there
        model = load_config(ROOT / "params.yaml", ["policy=smollm2-135m"]).preset.model
        network, tokenizer = create_policy(model, [], 0)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        folder = tmp_path_factory.mktemp("policy") / "model"
        save_policy(network, tokenizer, model, folder)
        yield folder


def texts(completions: list[str], answers: list[str]) -> list[str]:
    """Search texts as the service gives them."""
    assert len(completions) == len(answers)
    return [
        search_text("".join(c if c.isprintable() else " " for c in answer))
        or search_text(request.query)
        for answer, request in zip(answers, REQUESTS, strict=True)
    ]


def test_served_is_evaluated_is_what_transformers_writes(policy: Path) -> None:
    cached = CachedPolicy(policy, len(REQUESTS), 256, None)
    rewriter = Rewriter.load(policy, max_prompt_tokens=256, max_new_tokens=TOKENS)
    inputs = [
        {
            "query": request.query,
            "history": [
                {"name": p.name, "type": p.type, "colour": p.colour} for p in request.history
            ],
        }
        for request in REQUESTS
    ]
    for decoding, params in (
        (Decoding(TOKENS), {}),
        (Decoding(TOKENS, 1.0, seed=3), {"temperature": 1.0, "seed": 3}),
    ):
        found = cached.complete(REQUESTS, decoding)
        assert rewriter.rewrite(inputs, params) == texts(
            [c.completion for c in found], [c.answer for c in found]
        )
        assert len({c.completion for c in found}) == len(REQUESTS)

    generator = Generator.load(policy)
    prompts = [render(generator.tokenizer, request, 256) for request in REQUESTS]
    encoded = generator.tokenizer(
        [prompt.text for prompt in prompts],
        add_special_tokens=False,
        padding=True,
        return_tensors="pt",
    )
    out = generator.model.generate(**encoded, max_new_tokens=TOKENS, do_sample=False)
    width = encoded["input_ids"].shape[1]
    wanted = generator.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    assert [generator.decode(ids) for ids in generator(prompts, Decoding(TOKENS))] == wanted
    assert [c.completion for c in cached.complete(REQUESTS, Decoding(TOKENS))] == wanted
    # Offline training draws several completions of a prompt in one batch.
    three = generator([prompts[0]] * 3, Decoding(TOKENS, 1.0, seed=3), [0, 1, 2])
    assert len({generator.decode(ids) for ids in three}) == 3
    alone = [generator([prompt], Decoding(TOKENS))[0] for prompt in prompts]
    same = sum(generator.decode(ids) == text for ids, text in zip(alone, wanted, strict=True))
    print(f"bfloat16: {same} of {len(wanted)} answers do not depend on the batch")
