"""The control: the same answers, each given to another request of the same category.

A gain can come from how answers look and not from what is asked: where items that were sold have
other texts than the rest, anything written in their style gains. Swapped answers look as before and
are of another request; what they still gain is not of the request.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ospo.data.dataset import PreparedData

SWAPPED = "swapped"  # the name in tables' ``decoding`` of greedy answers that were swapped


def control_partners(data: PreparedData, rows: np.ndarray, seed: int) -> np.ndarray:
    """(R,) for each of the request ``rows`` the place among them whose answer it is given.

    Partners seek an item of the same category. Requests of one shopper, or of the same words where
    no shopper is known, are no partners as far as that can be avoided: their answers are alike.
    """
    category = dict(data.catalogue.select("item_id", "category").iter_rows())
    requests = [data.requests[int(row)] for row in rows]
    sought = [category[request.target_id] for request in requests]
    owners = [
        f"s {request.customer_id}" if request.customer_id else f"q {request.query.casefold()}"
        for request in requests
    ]
    return partners(sought, owners, seed)


def partners(groups: Sequence[str], owners: Sequence[str], seed: int) -> np.ndarray:
    """(R,) a permutation within ``groups`` that gives none to its own place or owner where that can
    be done.

    Each group is put in an order that keeps an owner's places together, drawn by ``seed``, and
    turned by as many places as its largest owner has: with at least twice as many places none meets
    its own. Groups of one owner are joined, and where these are of one owner too, put to the
    largest group. A single place is its own partner.
    """
    order = sorted(set(owners))
    drawn = np.random.default_rng(seed).permutation(len(order))
    rank = dict(zip(order, drawn.tolist(), strict=True))
    partner_R = np.arange(len(groups))
    for places in _circles(groups, owners):
        places.sort(key=lambda place: (rank[owners[place]], place))
        most = Counter(owners[place] for place in places).most_common(1)[0][1]
        partner_R[places] = np.roll(places, -(most if most < len(places) else 1))
    return partner_R


def _circles(groups: Sequence[str], owners: Sequence[str]) -> list[list[int]]:
    """The places that are turned together: of several owners wherever there are several."""
    members: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)

    def single(places: list[int]) -> bool:
        return len({owners[place] for place in places}) < 2

    circles = [places for _, places in sorted(members.items()) if not single(places)]
    rest = [place for _, places in sorted(members.items()) if single(places) for place in places]
    if rest and single(rest) and circles:
        max(circles, key=len).extend(rest)
    elif rest:
        circles.append(rest)
    return circles
