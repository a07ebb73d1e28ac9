"""From the credit of segments to the return of each decision, compared with the other completions
of its group.

A completion of n segments takes n + 1 decisions: to write each segment, and to stop. With the
segments' credits as rewards (potential-based shaping,
:func:`ospo.credit.advantages.shaped_rewards`) decision j is followed by the return

    G_j = Σ_{k=j}^{n−1} λ^{k−j} φ_k,    G_n = 0 (after stopping nothing follows)

and the natural baseline without a value model is what the group's completions get from the same
place on:

    b_j = mean of G_j over the completions of the group that came to decision j (n ≥ j)

Unlike a mean over the answer's own segments, b_j tells a segment that helps little from one that
should not be there (G_n − b_n punishes stopping early exactly where going on would have paid), and
it does not blame a good attribute for standing beside a request that is worth more. λ < 1 leaves
out the noise of the segments that follow.
"""

from collections.abc import Sequence

import numpy as np

from ospo.credit.segments import Segmentation


def returns(phi_N: np.ndarray, discount: float) -> np.ndarray:
    """G of the n + 1 decisions, (n,) → (n + 1,); see the module. ``discount``: λ in [0, 1]."""
    if not 0 <= discount <= 1:
        raise ValueError(f"discount: {discount} lies outside [0, 1]")
    result = np.zeros(len(phi_N) + 1)
    for j in range(len(phi_N) - 1, -1, -1):
        result[j] = phi_N[j] + discount * result[j + 1]
    return result


def group_relative_returns(
    phis: Sequence[np.ndarray], groups: Sequence[int] | np.ndarray, discount: float
) -> list[np.ndarray]:
    """G_j − b_j of each completion, (n_b + 1,) float64 each.

    ``phis``: credits of B completions. ``groups``: (B,) which completions share a prompt, in any
    order and of any size.

    At each place they sum to 0 over the group. Raises ValueError for a wrong number of groups.
    """
    group_B = np.asarray(groups)
    if group_B.shape != (len(phis),):
        raise ValueError(f"groups: wrong shape {group_B.shape}, ({len(phis)},) is needed")
    result: list[np.ndarray] = [returns(phi, discount) for phi in phis]
    for group in np.unique(group_B):
        members = np.flatnonzero(group_B == group)
        width = max(len(result[b]) for b in members)
        table_GJ = np.full((len(members), width), np.nan)
        for g, b in enumerate(members):
            table_GJ[g, : len(result[b])] = result[b]
        baseline_J = np.nanmean(table_GJ, axis=0)
        for b in members:
            result[b] = result[b] - baseline_J[: len(result[b])]
    return result


def decisions(segmentation: Segmentation, after: str) -> Segmentation:
    """The answer cut where decisions are taken, with what closes it as a last segment.

    A separator is written once the next segment has been decided on, so it belongs to the segment
    it opens: "red dress," | " linen" becomes "red dress" | ", linen". ``after``: the text between
    the answer and the end of its closing tag, the decision to stop; "" where the answer was cut
    off, and then there is no such segment.
    """
    text = segmentation.text
    spans: list[tuple[int, int]] = []
    begin = 0
    for _, end in segmentation.spans[:-1]:
        cut = end
        while cut > begin and not text[cut - 1].isalnum():
            cut -= 1
        cut = cut if cut > begin else end  # a segment of punctuation alone stays what it is
        spans.append((begin, cut))
        begin = cut
    if len(segmentation):
        spans.append((begin, len(text)))
    if after:
        spans.append((len(text), len(text) + len(after)))
    return Segmentation(text + after, tuple(spans))
