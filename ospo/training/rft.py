"""SFT by rejection sampling: the policy imitates its own completions whose reward is above a
threshold.

The paper's SFT baseline (arXiv 2601.08403); known as RFT (arXiv 2308.01825) and RAFT (arXiv
2304.06767).
"""

from ospo.policy.seen import seen_after
from ospo.policy.weights import load_policy
from ospo.training.offline import Completion, enough_of, sample_offline
from ospo.training.run import TrainingRun
from ospo.training.sft import IGNORE, run_supervised


def accepted(completions: list[Completion], threshold: float) -> list[Completion]:
    """Completions with a reward above ``threshold``, each text once for a request: what is said
    often is not better.
    """
    seen: set[tuple[int, str]] = set()
    kept = []
    for completion in completions:
        key = (completion.row, completion.answer)
        if completion.reward > threshold and key not in seen:
            seen.add(key)
            kept.append(completion)
    return kept


def train_rft(run: TrainingRun) -> None:
    """Train from the policy in ``run.start``. Resumes after a kill.

    Raises ConfigError where no completion is good enough.
    """
    config, rft = run.config, run.config.preset.rft
    examples = [
        {
            "input_ids": [*completion.prompt_ids, *completion.completion_ids],
            "labels": [IGNORE] * len(completion.prompt_ids) + list(completion.completion_ids),
        }
        for completion in enough_of(
            accepted(sample_offline(run), rft.threshold),
            rft,
            config,
            key="rft.threshold",
            lacking=f"no completion of the SFT policy has a reward above {rft.threshold}",
            fix="lower the threshold, or train the SFT policy longer",
        )
    ]
    network, tokenizer = load_policy(run.policy, config.preset.model, trainable=True)
    run_supervised(run, rft, network, tokenizer, examples, "rft", seen_after(run.data, run.policy))
