"""Prepared data in memory."""

import numpy as np
import polars as pl
import pytest

from ospo.data.dataset import Purchase, Request, load_prepared


def test_requests_behave_like_a_list(hm_tiny):
    requests = hm_tiny.requests
    listed = list(requests)
    assert len(listed) == len(requests) > 10
    assert requests[0] == listed[0]
    assert requests[-1] == listed[-1]
    assert requests[np.int64(3)] == listed[3]
    assert requests[2:8:2] == listed[2:8:2]
    assert requests[::-1][0] == listed[-1]
    assert listed[4] in requests
    assert requests.index(listed[4]) == 4
    with pytest.raises(IndexError):
        requests[len(requests)]
    with pytest.raises(TypeError):
        requests["0"]
    assert isinstance(listed[0], Request)
    assert all(isinstance(purchase, Purchase) for request in listed for purchase in request.history)


def test_rows_and_ids(esci_tiny):
    rows = [esci_tiny.rows(split) for split in ("train", "validation", "test")]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(esci_tiny.requests)))
    assert all(esci_tiny.requests[row].split == "test" for row in esci_tiny.rows("test"))
    assert esci_tiny.row_of(esci_tiny.requests[7].request_id) == 7
    with pytest.raises(KeyError):
        esci_tiny.rows("dev")
    with pytest.raises(KeyError):
        esci_tiny.row_of("nobody")
    assert esci_tiny.item_ids == sorted(esci_tiny.item_ids)
    assert esci_tiny.item_texts == esci_tiny.catalogue["text"].to_list()


def test_matrices_say_what_the_files_say(esci_tiny):
    pools = pl.read_parquet(esci_tiny.directory / "pools.parquet")["item_ids"].to_list()
    gains = {
        (q, i): g for q, i, g, _ in pl.read_parquet(esci_tiny.directory / "qrels.parquet").rows()
    }
    for row, (request, items) in enumerate(zip(esci_tiny.requests, pools, strict=True)):
        assert [esci_tiny.item_ids[item] for item in esci_tiny.pools_RP[row]] == items
        wanted = [gains.get((request.request_id, item), 0.0) for item in items]
        assert esci_tiny.gains_RP[row].tolist() == pytest.approx(wanted)
    assert esci_tiny.pools_RP.dtype == np.int32
    assert esci_tiny.gains_RP.dtype == np.float32


def test_pools_of_different_lengths_are_padded(esci_tiny, tmp_path):
    for name in ("catalogue", "requests", "qrels"):
        (tmp_path / f"{name}.parquet").write_bytes(
            (esci_tiny.directory / f"{name}.parquet").read_bytes()
        )
    extra = esci_tiny.item_ids[:3]
    relevant = pl.read_parquet(esci_tiny.directory / "qrels.parquet").filter(pl.col("gain") > 0)
    lists = relevant.group_by("request_id").agg(pl.col("item_id").sort()).sort("request_id")
    lists = lists.select(
        "request_id",
        item_ids=pl.col("item_id").list.concat(pl.lit(extra)).list.unique(maintain_order=True),
    )
    lists.write_parquet(tmp_path / "pools.parquet")
    data = load_prepared(tmp_path)
    lengths = lists["item_ids"].list.len().to_numpy()
    assert lengths.min() < lengths.max() == data.pools_RP.shape[1]
    assert ((data.pools_RP >= 0).sum(axis=1) == lengths).all()
    assert (data.pools_RP[:, -1] >= 0).sum() == (lengths == lengths.max()).sum()
    assert (data.gains_RP[data.pools_RP < 0] == 0).all()
