"""Which requests a policy was trained on, known across data sets."""

from pathlib import Path

import pytest

from ospo.data.dataset import PreparedData
from ospo.data.request import Request
from ospo.errors import InputError
from ospo.policy.seen import FILE, read_seen, request_key, request_keys, seen_after, write_seen


def test_a_request_is_known_by_all_three_parts() -> None:
    requests = [
        Request(request_id="1", query="2 hats", customer_id="a"),
        Request(request_id="12", query=" hats", customer_id="a"),  # run together they are equal
        Request(request_id="1", query="2 hats", customer_id="b"),
        Request(request_id="1", query="3 hats", customer_id="a"),
        Request(request_id="2", query="2 hats", customer_id="a"),
    ]
    assert len({request_key(request) for request in requests}) == len(requests)
    again = Request(request_id="1", query="2 hats", customer_id="a", split="test", target_id="x")
    assert request_key(again) == request_key(requests[0])


def test_a_policy_has_seen_its_own_requests_and_those_of_its_start(
    esci_tiny: PreparedData, tmp_path: Path
) -> None:
    own = request_keys(esci_tiny, esci_tiny.rows("train"))
    assert own == sorted(set(own))
    assert seen_after(esci_tiny) == own
    assert read_seen(tmp_path) is None
    assert seen_after(esci_tiny, tmp_path) == own
    write_seen(tmp_path, ["zzz", own[0], "zzz"])
    assert read_seen(tmp_path) == {"zzz", own[0]}
    assert seen_after(esci_tiny, tmp_path) == [*own, "zzz"]
    (tmp_path / FILE).write_text('{"a": 1}')
    with pytest.raises(InputError, match="is not a list of request keys"):
        read_seen(tmp_path)
