"""An export of a model as a parcel: its weights rounded to bf16, cut into pieces of a limited size, put together again.

A parcel is a zip archive of the export's texts and of two planes of its weights: the upper bytes of all bf16 values
(sign and exponent, which deflate to half their size) and the lower ones. A piece begins with the SHA-256 of the whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from lm.base.rundir import RunDir
from lm.scoring.loading import load_trained, weights_digest

_DIGEST_BYTES = hashlib.sha256().digest_size
_ROUNDED = "\nThe weights were rounded to bf16 on their way here; the figures above are those of the exact ones.\n"


def split(data: bytes, most: int) -> list[bytes]:
    """Cut `data` into pieces of at most `most` bytes, each with the checksum of the whole before it."""
    digest = hashlib.sha256(data).digest()
    room = most - len(digest)
    return [digest + data[start : start + room] for start in range(0, len(data), room)]


def join(pieces: Sequence[bytes]) -> bytes:
    """The data of which `pieces` are all pieces in order. Raises ValueError if one is missing, damaged or misplaced."""
    data = b"".join(piece[_DIGEST_BYTES:] for piece in pieces)
    if {piece[:_DIGEST_BYTES] for piece in pieces} != {hashlib.sha256(data).digest()}:
        raise ValueError("the pieces make no whole: one is missing, damaged, of another whole, or not in its place")
    return data


def pack(export: Path) -> bytes:
    """The parcel of an export."""
    with safe_open(RunDir(export).weights, "pt") as file:
        metadata = file.metadata()
        names = sorted(file.keys())
        tensors = [file.get_tensor(name) for name in names]
    bits = torch.cat([tensor.bfloat16().flatten() for tensor in tensors]).view(torch.int16).numpy().astype("<i2")
    planes = np.ascontiguousarray(bits.view(np.uint8).reshape(-1, 2).T)
    shapes = {name: list(tensor.shape) for name, tensor in zip(names, tensors, strict=True)}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in (RunDir(export).config, RunDir(export).tokenizer, export / "README.md"):
            archive.write(path, path.name)
        archive.writestr("parcel.json", json.dumps({"shapes": shapes, "text": metadata["text"]}))
        archive.writestr("upper", planes[1].tobytes())
        archive.writestr("lower", planes[0].tobytes(), zipfile.ZIP_STORED)
    return content.getvalue()


def unpack(data: bytes, export: Path) -> None:
    """Restore the export from its parcel, in fp32, and read it once. Raises CheckpointError if it is not usable."""
    export.mkdir(parents=True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        about = json.loads(archive.read("parcel.json"))
        planes = np.stack([np.frombuffer(archive.read(name), np.uint8) for name in ("lower", "upper")], axis=1)
        for name in ("config.json", "tokenizer.json"):
            (export / name).write_bytes(archive.read(name))
        (export / "README.md").write_text(archive.read("README.md").decode() + _ROUNDED)
    values = torch.from_numpy(planes.copy().view("<i2").reshape(-1)).view(torch.bfloat16).float()
    parts = values.split([math.prod(shape) for shape in about["shapes"].values()])
    weights = {
        name: part.view(shape).clone() for part, (name, shape) in zip(parts, about["shapes"].items(), strict=True)
    }
    metadata = {"text": about["text"], "sha256": weights_digest(weights, about["text"]), "format": "pt"}
    RunDir(export).weights.write_bytes(save(weights, metadata))
    load_trained(RunDir(export))
