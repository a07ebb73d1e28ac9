"""Ways to turn credit into advantages, in a simulation that takes minutes: ``python -m
benchmarks.redistribution``.

A policy writes up to 8 words; its logits are linear in what a request shows, so that knowledge is
shared between requests as in a network. Each of 40 cues makes one word good (+0.9), every other
word hurts (−0.3), repeats count once; a request shows 5 cues. In the scene ``shop`` a text also
begins, mostly, with the request's own words, which are worth 2.5. The reward is shaped like nDCG, 1
/ log2(2 + 60 · exp(−0.9 · utility)); credit is the exact Shapley value. Adam, 4 requests × 8
completions per step. Each mode is reported at the best of five learning rates (by mean reward),
GRPO too, and compared with GRPO by the mean reward of all steps, paired by seed
(``ospo.evaluation.statistics``). The rate is chosen on the reported seeds, for every mode alike.

The last line of stdout is one JSON object: reward after 25, 50, 100 and 200 steps by scene and
mode.
"""

import argparse
import math
from typing import Any

import numpy as np

from benchmarks import finish, machine, progress, start
from ospo.evaluation.statistics import seed_interval, seed_test

SLOTS, CUES, SHOWN, BAD, PROMPTS, GROUP = 8, 40, 5, 60, 4, 8
RATES: tuple[float, ...] = (0.02, 0.04, 0.08, 0.16, 0.3)
MARKS = (25, 50, 100, 200)
MASKS = (np.arange(1 << SLOTS)[:, None] >> np.arange(SLOTS)) & 1
_WITHOUT = [np.flatnonzero(MASKS[:, j] == 0) for j in range(SLOTS)]
_WEIGHT = [
    np.array([1 / (SLOTS * math.comb(SLOTS - 1, int(k))) for k in MASKS[w].sum(1)])
    for w in _WITHOUT
]
MODES = (
    "grpo",
    "paper-prop",
    "signed-prop",
    "additive:0.3",
    "place",
    "loo",
    "to-go-neutral:0.5",
    "to-go:0",
    "to-go:0.5",
    "to-go:0.8",
)


def reward(utility: np.ndarray) -> np.ndarray:
    """nDCG-like reward of a utility, any shape."""
    return 1 / np.log2(2 + 60 * np.exp(-0.9 * utility))


def coalition_values(pick: np.ndarray, alive: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """(B, G, 2**SLOTS) rewards of all coalitions of the words written; ``worth`` (B, G, SLOTS),
    repeats count once.
    """
    total = np.zeros((*pick.shape[:2], 1 << SLOTS))
    for j in range(SLOTS):
        here = np.broadcast_to(MASKS[:, j] > 0, total.shape).copy()
        for i in range(j):
            same = (pick[..., i] == pick[..., j])[..., None]
            here &= ~(same & (MASKS[:, i] > 0))
        total += here * worth[..., j, None]
    some = np.einsum("sl,bgl->bgs", MASKS, alive.astype(float)) > 0
    return np.where(some, reward(total), 0.0)


def advantages(
    mode: str, values: np.ndarray, alive: np.ndarray, decided: np.ndarray, clip: float = 2.0
) -> np.ndarray:
    """(B, G, SLOTS) advantages of the decisions taken; ``values`` (B, G, 2**SLOTS)."""
    count = alive.sum(2, keepdims=True)
    full = ((1 << np.arange(SLOTS)) * alive).sum(2)
    rewards = np.take_along_axis(values, full[..., None], 2)[..., 0]
    std = rewards.std(1, keepdims=True)[..., None] + 1e-4
    sequence = (rewards - rewards.mean(1, keepdims=True))[..., None] / std
    base, _, number = mode.partition(":")
    size = np.maximum(count, 1)

    def mean(x: np.ndarray, over: np.ndarray = alive) -> np.ndarray:
        return (x * over).sum(2, keepdims=True) / np.maximum(over.sum(2, keepdims=True), 1)

    def less_group(x: np.ndarray, over: np.ndarray) -> np.ndarray:
        return x - (x * over).sum(1, keepdims=True) / np.maximum(over.sum(1, keepdims=True), 1)

    shares = [
        ((values[..., w | (1 << j)] - values[..., w]) * _WEIGHT[j]).sum(-1)
        for j, w in enumerate(_WITHOUT)
    ]
    phi = np.stack(shares, axis=2)
    phi = np.where(alive, phi, 0.0)
    over = alive
    if base == "grpo":
        deviation = np.zeros_like(phi)
    elif base in ("paper-prop", "signed-prop"):
        low = np.where(alive, phi, np.inf).min(2, keepdims=True)
        high = np.where(alive, phi, -np.inf).max(2, keepdims=True)
        differ = (count > 1) & (high - low > 1e-9)
        z = np.where(differ, (phi - low) / np.where(differ, high - low, 1.0), 1.0)
        if base == "signed-prop":
            z = np.where(sequence > 0, z, np.where(differ, 1 - z, 1.0))
        middle = mean(z)
        deviation = np.where(differ, sequence * (z / np.where(middle > 0, middle, 1.0) - 1), 0.0)
    elif base == "additive":
        deviation = float(number) * size * (phi - mean(phi)) / std
    elif base in ("place", "loo"):
        if base == "loo":
            without = full[..., None] & ~(1 << np.arange(SLOTS))
            phi = np.where(alive, rewards[..., None] - np.take_along_axis(values, without, 2), 0.0)
        x = size * less_group(phi, alive) / std * (0.3 if base == "place" else 1.0)
        deviation = x - mean(x)
    else:
        gone = np.zeros((*phi.shape[:2], SLOTS + 1))
        for j in range(SLOTS - 1, -1, -1):
            gone[..., j] = phi[..., j] + float(number) * gone[..., j + 1]
        over = decided if base == "to-go" else alive
        x = 2 * less_group(gone[..., :SLOTS], decided) / std
        deviation = x - mean(x, over)
    bound = np.maximum(clip * np.sqrt((sequence**2).mean()), np.abs(sequence))
    return np.clip(sequence + np.where(over, deviation, 0.0), -bound, bound)


def start_weights(rng: np.random.Generator, scene: str, seeds: int) -> np.ndarray:
    """(seeds, cues + 1, words + 1) logits by cue: what a poor teacher taught; the last cue is
    always shown.
    """
    words = CUES + BAD + (scene == "shop")
    weight = rng.normal(0, 0.1, (seeds, CUES + 1, words + 1))
    weight[:, np.arange(CUES), np.arange(CUES)] += 1.0
    weight[:, CUES, words] = 1.0  # to stop
    if scene == "shop":
        weight[:, CUES, words - 1] = 0.0  # the request's own words
    return weight


def requests(rng: np.random.Generator, seeds: int) -> np.ndarray:
    """(seeds, PROMPTS, cues + 1) what each request of a step shows."""
    shows = np.zeros((seeds, PROMPTS, CUES + 1))
    for s in range(seeds):
        for p in range(PROMPTS):
            shows[s, p, rng.choice(CUES, SHOWN, replace=False)] = 1
    shows[..., CUES] = 1
    return shows


def write_chances(weight: np.ndarray, shows: np.ndarray, scene: str) -> np.ndarray:
    """(requests, SLOTS, words + 1) chance of each word, or of stopping, at each place."""
    words, batch = weight.shape[2] - 1, shows.shape[0] * PROMPTS
    logits = np.einsum("spf,sfv->spv", shows, weight).reshape(batch, 1, words + 1)
    logits = logits.repeat(SLOTS, 1).copy()
    logits[:, 0, words] -= 6
    if scene == "shop":
        logits[:, 0, words - 1] += 6
        logits[:, 1:, words - 1] -= 6
    logits[:, :, words] += np.arange(SLOTS) * 0.3
    chance = np.exp(logits - logits.max(2, keepdims=True))
    chance /= chance.sum(2, keepdims=True)
    return chance


def worths(shows: np.ndarray, words: int, scene: str) -> np.ndarray:
    """(requests, words + 1) what each word is worth to each request."""
    shown = shows.reshape(-1, CUES + 1)[:, :CUES]
    utility = np.full((len(shown), words + 1), -0.3)
    utility[:, :CUES] = np.where(shown > 0, 0.9, -0.3)
    if scene == "shop":
        utility[:, words - 1] = 2.5
    return utility


def policy_gradient(
    scaled: np.ndarray, pick: np.ndarray, chance: np.ndarray, shows: np.ndarray
) -> np.ndarray:
    """(seeds, cues + 1, words + 1) gradient of advantage-weighted log-probabilities."""
    batch, group, _ = pick.shape
    slope = np.zeros((batch, chance.shape[2]))
    rows = np.arange(batch)[:, None].repeat(group, 1)
    for j in range(SLOTS):
        np.add.at(slope, (rows, pick[..., j]), scaled[..., j])
        slope -= scaled[..., j].sum(1)[:, None] * chance[:, j]
    by_request = slope.reshape(len(shows), PROMPTS, -1)
    return np.einsum("spf,spv->sfv", shows, by_request) / (PROMPTS * group)


def train(mode: str, rate: float, scene: str, steps: int, seeds: int) -> np.ndarray:
    """Mean reward by step and seed (steps, seeds), of ``seeds`` independent policies.

    A seed begins with the same policy and is shown the same requests whatever the mode.
    """
    rng = np.random.default_rng(0)
    weight = start_weights(rng, scene, seeds)
    words = weight.shape[2] - 1
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    batch, history = seeds * PROMPTS, []
    for step in range(steps):
        shows = requests(rng, seeds)
        utility, chance = worths(shows, words, scene), write_chances(weight, shows, scene)
        drawn = rng.random((batch, GROUP, SLOTS, 1)) > chance.cumsum(2)[:, None]
        pick = drawn.sum(3).clip(0, words)
        ended = pick == words
        length = np.where(ended.any(2), ended.argmax(2), SLOTS)[..., None]
        alive, decided = np.arange(SLOTS) < length, np.arange(SLOTS) <= length
        spread = np.broadcast_to(utility[:, None], (batch, GROUP, words + 1))
        values = coalition_values(pick, alive, np.take_along_axis(spread, pick, 2) * alive)
        full = ((1 << np.arange(SLOTS)) * alive).sum(2)
        rewards = np.take_along_axis(values, full[..., None], 2)
        history.append(rewards.reshape(seeds, -1).mean(axis=1))
        scaled = advantages(mode, values, alive, decided) * decided
        gradient = policy_gradient(scaled, pick, chance, shows)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        corrected = np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8
        weight += rate * first / (1 - 0.9 ** (step + 1)) / corrected
    return np.array(history)


def figures_of(rate: float, run: np.ndarray, grpo: np.ndarray) -> dict[str, Any]:
    """Means of a (steps, seeds) run, and its mean reward against GRPO's, paired by seed."""
    marks = {str(m): round(float(run[m - 10 : m].mean()), 4) for m in MARKS if m <= len(run)}
    figures: dict[str, Any] = {"learning_rate": rate, "mean": round(float(run.mean()), 4)} | marks
    apart_S = run.mean(axis=0) - grpo.mean(axis=0)
    if apart_S.any() and len(apart_S) > 1:
        interval, p = seed_interval(apart_S), float(seed_test(apart_S[:, None])[0])
        figures["minus_grpo"] = {
            "mean": round(interval.value, 4),
            "ci": [round(interval.low, 4), round(interval.high, 4)],
            "p": round(p, 4),
        }
    return figures


def main() -> None:
    """Run all modes in both scenes and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="GRPO, additive and to-go, 60 steps, two rates"
    )
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    modes: tuple[str, ...] = MODES
    rates, steps = RATES, MARKS[-1]
    if arguments.quick:
        modes, rates, steps = ("grpo", "additive:0.3", "to-go:0.5"), RATES[1:3], 60
    figures: dict[str, Any] = {}
    for scene in ("free", "shop"):
        figures[scene] = {}
        best: dict[str, np.ndarray] = {}
        for mode in modes:  # GRPO first: the others are compared with it
            runs = {rate: train(mode, rate, scene, steps, arguments.seeds) for rate in rates}
            rate = max(runs, key=lambda r: runs[r].mean())
            best[mode] = runs[rate]
            figures[scene][mode] = figures_of(rate, runs[rate], best["grpo"])
            progress(f"{scene} {mode}: {figures[scene][mode]}")
    finish(figures | {"seeds": arguments.seeds, "steps": steps, "machine": machine()})


if __name__ == "__main__":
    start(main)
