"""What the page keeps in memory: prepared data, indexed retrievers and their rewards, and which of
them can be chosen.
"""

import threading
from collections import OrderedDict
from functools import cached_property

import polars as pl

from ospo.config import Config, own_config
from ospo.data.dataset import PreparedData, load_prepared, read_prepared_table
from ospo.data.request import Request
from ospo.errors import InputError
from ospo.evaluation.hits import FirstHits
from ospo.page.asked import AskedError
from ospo.page.policies import Policies
from ospo.paths import PREPARED
from ospo.policy.text import SearchText
from ospo.retrieval import build_retriever
from ospo.retrieval.base import Retriever
from ospo.reward.answers import reward_of_answers
from ospo.reward.protocol import Reward
from ospo.reward.search import SearchReward

KEPT = 4  # data sets in memory


class Loaded:
    """A prepared data set with the retrievers asked for so far."""

    def __init__(self, config: Config, data: PreparedData) -> None:
        self.config, self.data = config, data
        self._shared: dict[str, Retriever] = {}
        self._rewards: dict[str, SearchReward] = {}
        self._of_answers: dict[tuple[str, str], Reward] = {}

    def retriever(self, name: str) -> Retriever:
        """An indexed retriever; the first time takes seconds. Raises InputError where it cannot be
        built.
        """
        return build_retriever(name, self.config, self.data, self._shared)

    def reward(self, name: str) -> SearchReward:
        """nDCG@k under a retriever, as training and evaluation have it."""
        if name not in self._rewards:
            settings = self.config.reward
            self._rewards[name] = SearchReward(
                self.retriever(name), self.data, settings.k, settings.cache_texts
            )
        return self._rewards[name]

    def reward_of(self, name: str, rule: SearchText) -> Reward:
        """The same of answers under ``rule``."""
        key = (name, rule.kind)
        if key not in self._of_answers:
            self._of_answers[key] = reward_of_answers(self.reward(name), rule, self.data.requests)
        return self._of_answers[key]

    def first_hits(self, request: Request) -> tuple[str, ...]:
        """Titles of a request's first hits under the training retriever, as in evaluation."""
        return FirstHits(self.config, self.data, self._shared)([request])[0]

    @cached_property
    def by_query(self) -> dict[str, list[int]]:
        """Request rows by their query in lower case."""
        found: dict[str, list[int]] = {}
        for row, query in enumerate(self.data.requests.frame["query"]):
            found.setdefault(query.strip().lower(), []).append(row)
        return found

    @cached_property
    def _qrels(self) -> dict[str, pl.DataFrame]:
        table = read_prepared_table(self.data.directory, "qrels")
        parts = table.partition_by("request_id", as_dict=True)
        return {str(key[0]): part for key, part in parts.items()}

    def judgements(self, request_id: str) -> dict[str, tuple[float, str]]:
        """Item id → (gain, label) of a request's judged items."""
        part = self._qrels.get(request_id)
        if part is None:
            return {}
        return {item: (gain, name) for item, gain, name in part["item_id", "gain", "label"].rows()}


class Shop:
    """Everything of one project that the page shows. ``lock``: held while retrievers work or are
    built; they are not made for several threads.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.policies = config, Policies(config)
        self.lock = threading.RLock()
        self._loaded: OrderedDict[tuple[str, int], Loaded] = OrderedDict()

    @property
    def datasets(self) -> list[str]:
        """The data sets that are prepared."""
        return [name for name in self.config.datasets if (PREPARED / name).is_dir()]

    @property
    def retrievers(self) -> list[str]:
        """The training retriever, then the unseen ones."""
        settings = self.config.retrievers
        return list(dict.fromkeys([settings.training, *settings.unseen]))

    def retriever_name(self, name: str) -> str:
        """``name``, the training retriever where it is "". Raises AskedError for an unknown
        one.
        """
        known = self.retrievers
        if name and name not in known:
            problem = f"retriever: {name!r:.60} is not in params.yaml"
            raise AskedError(f"{problem}. Fix: use one of {', '.join(known)}")
        return name or known[0]

    def dataset_name(self, name: str) -> str:
        """``name``, the first prepared data set where it is "". Raises AskedError where it is
        unknown, InputError where it is not prepared.
        """
        if name and name not in self.config.datasets:
            known = ", ".join(self.config.datasets)
            problem = f"dataset: {name!r:.60} is not in params.yaml"
            raise AskedError(f"{problem}. Fix: use one of {known}")
        prepared = self.datasets
        if not prepared or (name and name not in prepared):
            raise InputError(
                PREPARED / (name or self.config.datasets[0]),
                "",
                "is not prepared yet",
                "run `make demo`, or `dvc repro` for the data alone",
            )
        return name or prepared[0]

    def loaded(self, dataset: str) -> Loaded:
        """A data set, loaded again where it was prepared again. Raises InputError."""
        file = PREPARED / dataset / "requests.parquet"
        key = (dataset, file.stat().st_mtime_ns if file.is_file() else 0)
        with self.lock:
            if key not in self._loaded:
                own = own_config(self.config, dataset)
                self._loaded[key] = Loaded(own, load_prepared(PREPARED / dataset))
                while len(self._loaded) > KEPT:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]
