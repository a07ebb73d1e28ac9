"""The recipe of an exported policy as code beside its weights: no ospo is needed to run it.

``ospo_rules.py`` holds the very sources of prompt, answer and search text; ``rewrite.py`` is what
uses them with plain transformers.
"""

import ast
import inspect
import re

from ospo.config import Answer
from ospo.data import request as request_module
from ospo.errors import printable
from ospo.policy import prompts, shown, text

_HEADER = '''"""Prompt, answer and search text of this policy, as in training (`ospo export`)."""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, ClassVar

InputError = ValueError
'''

_CODE = '''"""Rewrite requests: `python rewrite.py "running shoes"`; made by `ospo export`."""

import sys
from pathlib import Path

import ospo_rules as rules
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE, KIND, PROMPT_TOKENS, NEW_TOKENS = Path(__file__).parent, "{answer}", {prompt}, {new}
tokenizer = AutoTokenizer.from_pretrained(HERE)
model = AutoModelForCausalLM.from_pretrained(HERE, dtype="auto").eval()


def rewrite(query, history=(), hits=()):
    """The search text of a request; history: [{{"name", "type", "colour"}}], oldest first; hits:
    titles of the engine's first hits for the query, best first ({hits} of them are read)."""
    rule = rules.SEARCH_TEXTS[KIND]
    if not rules.clean(query) and not history:
        return rule.text(rules.printable(query), "")
    bought = tuple(rules.Purchase(**p) for p in history)
    request = rules.Request(query=query, history=bought, hits=tuple(hits[:{hits}]))
    messages, _ = rules.fit_messages(request, tokenizer, PROMPT_TOKENS, answer=KIND)
    prompt = rules.render_messages(tokenizer, messages)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids.shape[1] :]
    completion = tokenizer.decode(out, skip_special_tokens=True)
    answer, _ = rules.extract_answer(completion, rules.opens_thinking(tokenizer))
    return rules.shown_text(rule, query, answer)


if __name__ == "__main__":
    for query in sys.argv[1:]:
        print(rewrite(query))
'''
_MODULES = (request_module, text, prompts, shown)


def rules_source() -> str:
    """The source of ``ospo_rules.py``: the modules that make prompts and texts, one after another,
    without their imports.
    """
    parts = [inspect.getsource(printable)]
    for module in _MODULES:
        source = inspect.getsource(module)
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                first, last = node.lineno - 1, node.end_lineno or node.lineno
                lines[first:last] = [""] * (last - first)
        parts.append(re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip())
    return "\n\n\n".join([_HEADER.strip(), *parts]) + "\n"


def recipe_source(
    answer: Answer, max_prompt_tokens: int, max_new_tokens: int, hits: int = 0
) -> str:
    """The source of ``rewrite.py``: ten lines from a request to its search text.
    ``hits``: how many of a request's first hits the policy reads.
    """
    return _CODE.format(answer=answer, prompt=max_prompt_tokens, new=max_new_tokens, hits=hits)
