"""What a policy folder must be before and after it is loaded, wherever it comes from.

Only safetensors are read, every weight of the architecture is there in its shape and finite, and
the chat template answers within a limit of time, memory and length. Everything else is one line.
"""

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ospo.data.request import Purchase, Request
from ospo.errors import InputError, OspoError
from ospo.files import read_json
from ospo.policy.prompts import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    MAX_TEMPLATE,
    THINK_CLOSE,
    THINK_OPEN,
    prompt_messages,
)

WEIGHTS, INDEX, ADAPTER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
_FIX = "restore the policy from its origin, or train or register it again"
TEMPLATE_SECONDS = 20.0  # a fresh interpreter and its imports included; templates take milliseconds
_TEMPLATE_BYTES = 1 << 30  # of memory


@contextmanager
def one_line(place: str | Path, field: str, fix: str = _FIX) -> Iterator[None]:
    """Turn what the libraries raise over a broken folder into one InputError.

    They raise nearly every kind of exception, plain Exception among them. Errors of this project
    and of memory pass.
    """
    try:
        yield
    except (OspoError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0].strip()[:300]
        kind = type(error).__name__
        problem = f"cannot be loaded ({reason or kind})"
        raise InputError(place, field, problem, fix) from error


@contextmanager
def only_errors() -> Iterator[None]:
    """Keep the library's reports about a folder off the screen; what matters is checked and raised
    here.
    """
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def read_object(file: Path) -> dict[str, Any]:
    """A file's JSON object. Raises InputError where it holds none."""
    try:
        value = read_json(file)
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(file, "", "is not a JSON object", _FIX)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:  # an epsilon of NaN makes every logit NaN
        raise InputError(file, "", "holds NaN or infinity", _FIX) from None
    return value


def check_network_files(directory: Path) -> None:
    """Raise InputError unless full weights in ``directory`` are safetensors and nothing else.

    ``model.safetensors``, or an index that names safetensors files of this very folder. A pickle
    can run code when it is read: transformers would follow an index, or ``transformers_weights`` of
    config.json, to one.
    """
    config = read_object(directory / "config.json")
    fix = "save the weights as safetensors (save_pretrained does)"
    if (named := config.get("transformers_weights")) is not None:
        raise InputError(directory / "config.json", "transformers_weights", f"names {named}", fix)
    if (directory / "adapter_config.json").is_file():
        raise InputError(
            directory / "adapter_config.json",
            "",
            "lies beside full weights, which it would change",
            "name a folder that holds either an adapter or a model",
        )
    _check_generation(directory / "generation_config.json")
    if (directory / WEIGHTS).is_file():
        return
    if not (directory / INDEX).is_file():
        raise InputError(directory, "", f"cannot be loaded (no {WEIGHTS})", fix)
    mapped = read_object(directory / INDEX).get("weight_map")
    names = set(mapped.values()) if isinstance(mapped, dict) else {None}
    for name in sorted(names, key=str):
        plain = isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
        if not plain:
            raise InputError(
                directory / INDEX, "weight_map", f"names {name!r}, no safetensors file here", fix
            )
        if not (directory / str(name)).is_file():
            raise InputError(
                directory / INDEX, "weight_map", f"names {name}, which is missing", fix
            )


def _check_generation(file: Path) -> None:
    """Raise InputError where the ids of the tokens that end an answer are unreadable: transformers
    takes none then, and every answer runs into the limit.
    """
    if not file.is_file():
        return
    ids = read_object(file).get("eos_token_id")
    if not all(type(i) is int for i in (ids if isinstance(ids, list) else [ids]) if i is not None):
        problem = f"is {str(ids)[:60]!r}, no token's number nor a list of them"
        raise InputError(file, "eos_token_id", problem, _FIX)


# Keys of adapter_config.json whose texts peft takes for regular expressions and holds against the
# name of every layer.
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")


def _check_patterns(file: Path) -> None:
    """Raise InputError where an adapter names its layers by more than names: a regular expression
    can take for ever.
    """
    config = read_object(file)
    for key in _PATTERNS:
        value = config.get(key)
        for name in [value] if isinstance(value, str) else value or ():
            if not isinstance(name, str) or not re.fullmatch(r"[\w.-]*", name):
                problem = f"holds {str(name)[:60]!r}, which is no layer's name"
                raise InputError(file, key, problem, "list the layers by their names")


def check_adapter_files(directory: Path) -> None:
    """Raise InputError unless the adapter's weights are there as safetensors, and its configuration
    names layers by plain names.
    """
    _check_patterns(directory / "adapter_config.json")
    if not (directory / ADAPTER).is_file():
        raise InputError(
            directory, "", f"cannot be loaded (no {ADAPTER})", "save the adapter as safetensors"
        )


def check_loaded(place: str | Path, info: Mapping[str, Iterable[Any]]) -> None:
    """Raise InputError where the file and the architecture do not hold the same weights.

    ``info``: transformers' loading info. A weight that is missing would be drawn at random, one
    that is left over would be dropped in silence.
    """
    for kind, words in (
        ("missing_keys", "lacks"),
        ("mismatched_keys", "has in another shape"),
        ("unexpected_keys", "has, beyond its architecture,"),
        ("error_msgs", "does not load:"),
    ):
        if found := sorted(map(str, info[kind])):
            raise InputError(
                place, "weights", f"{words} {len(found)} of its weights, first {found[0]}", _FIX
            )


def check_adapter_loaded(directory: Path, network: Any) -> None:
    """Raise InputError where ``adapter_model.safetensors`` and the adapter's layers do not
    correspond one to one.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    state = get_peft_model_state_dict(network, save_embedding_layers=False)
    with safe_open(directory / ADAPTER, framework="pt") as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 (not a dict)
    wanted = {name: tuple(value.shape) for name, value in state.items()}
    check_loaded(
        directory / ADAPTER,
        {
            "missing_keys": wanted.keys() - shapes.keys(),
            "unexpected_keys": shapes.keys() - wanted.keys(),
            "mismatched_keys": [
                name for name in wanted.keys() & shapes.keys() if wanted[name] != shapes[name]
            ],
            "error_msgs": [],
        },
    )


def check_finite(place: str | Path, network: Any) -> None:
    """Raise InputError where a weight is NaN or infinite."""
    for name, value in network.named_parameters():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(place, "weights", f"{name} holds NaN or infinity", _FIX)


def check_vocabulary(place: str | Path, network: Any, tokenizer: Any) -> None:
    """Raise InputError where the tokenizer has tokens for which the network has no embedding."""
    rows = network.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        problem = f"the tokenizer has {len(tokenizer)} tokens, the network {rows}"
        raise InputError(place, "tokenizer", problem, _FIX)


def check_tags(place: str | Path, tokenizer: Any) -> None:
    """Raise InputError where decoding loses a tag that answers are found by.

    Completions are decoded without special tokens. A tokenizer that counts ``</think>`` among them
    would turn a thought into the answer.
    """
    for tag in (ANSWER_OPEN, ANSWER_CLOSE, THINK_OPEN, THINK_CLOSE):
        ids = tokenizer(tag, add_special_tokens=False)["input_ids"]
        if tag not in tokenizer.decode(ids, skip_special_tokens=True):
            raise InputError(
                place,
                "tokenizer",
                f"treats {tag} as a special token, which decoding drops",
                'set "special": false for it in tokenizer.json and tokenizer_config.json',
            )


# Reads [module search path, arguments of the renderer, bytes] and writes the longest text's length.
_PROBE = """
import json, sys
path, arguments, size = json.load(sys.stdin)
sys.path[:] = path
import resource
from transformers.utils.chat_template_utils import render_jinja_template
resource.setrlimit(resource.RLIMIT_AS, (size, size))
try:
    texts, _ = render_jinja_template(**arguments)
    print(max(map(len, texts)))
except MemoryError:
    print(size)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def check_template(place: str | Path, tokenizer: Any) -> None:
    """Raise InputError unless the chat template renders requests within a limit of time, memory and
    length.

    A template is a program that came with the weights. It is first run in a process of its own,
    which is ended after ``TEMPLATE_SECONDS``; once per template and process.
    """
    if tokenizer.chat_template is None:
        raise InputError(place, "chat_template", "the tokenizer has none", "take an instruct model")
    special = json.dumps(tokenizer.special_tokens_map, default=str)
    with one_line(place, "chat_template"):  # several templates, and none of them the default
        template = tokenizer.get_chat_template()
    if problem := _template_problem(template, special):
        raise InputError(
            place, "chat_template", problem, "take a policy with an ordinary chat template"
        )


@cache
def _template_problem(template: str, special_tokens: str) -> str:
    """What is wrong with a template, "" where nothing is."""
    purchases = tuple(Purchase(name=f"Linen shirt {i}", type="Shirt") for i in range(20))
    conversations = [
        prompt_messages(Request(query=query, history=history))
        for query in ("red dress", "summer top " * 30)
        for history in ((), purchases)
    ]
    arguments = {
        "conversations": conversations,
        "chat_template": template,
        "add_generation_prompt": True,
        **json.loads(special_tokens),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            input=json.dumps([sys.path, arguments, _TEMPLATE_BYTES]),
            capture_output=True,
            text=True,
            timeout=TEMPLATE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"is not rendered within {TEMPLATE_SECONDS:g} s"
    if done.returncode or not done.stdout.strip().isdigit():
        reason = (done.stderr.strip().splitlines() or ["it was ended"])[-1][:300]
        return f"cannot be rendered ({reason})"
    longest = max(sum(len(m["content"]) for m in messages) for messages in conversations)
    if int(done.stdout) > longest + MAX_TEMPLATE:
        return f"makes a prompt of {int(done.stdout)} characters or more"
    return ""
