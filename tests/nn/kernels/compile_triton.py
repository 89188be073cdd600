"""Compile the Triton kernels for an H100 without one: `python -m tests.nn.kernels.compile_triton [--all]`.

Prints a JSON line a kernel: registers a thread, bytes of spilled registers, shared memory, and what the instructions
show: products on tensor cores, and copies into shared memory that run beside them. ptxas, cuobjdump and nvdisasm are
those of Triton's wheel.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lm.nn.kernels import triton_loss, triton_qrnn, triton_steps
from lm.nn.kernels.triton_lstm import COPY_BLOCK, Tile, choose_tiles, padded_size

_H100 = GPUTarget("cuda", 90, 32)
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_SIZES = [f"{hidden}x{batch}" for hidden in (1150, 650, 400, 200) for batch in (20, 40, 80, 100)]
_POINTERS = {
    "forward_step": {
        "w": "*bf16", "z": "*bf16", "h": "*bf16", "c": "*fp32", "gates": "*fp32", "out": "*fp32"
    },
    "backward_step": {
        "w_t": "*bf16", "dz": "*bf16", "gates": "*fp32", "c": "*fp32", "dout": "*fp32", "dh_end": "*fp32",
        "dc": "*fp32", "parts": "*fp32", "tickets": "*i32",
    },
    "pool_forward": {"y": "*bf16", "c": "*fp32", "out": "*fp32"},
    "pool_backward": {
        "dout": "*fp32", "dc_end": "*fp32", "y": "*bf16", "c": "*fp32", "dy": "*bf16", "dc": "*fp32"
    },
    "masked_copy": {
        "source": "*fp32", "mask": "*bf16", "copy": "*bf16", "copy_t": "*bf16", "scale": "fp32", "rows": "i32",
        "columns": "i32", "to_rows": "i32", "to_columns": "i32",
    },
    "softmax_gradient": {"z": "*bf16", "target": "*i64", "nats": "*fp32", "P": "i32"},
}  # fmt: skip


def compile_step(kernel: str, H: int, P: int, tile: Tile, **constants: Any) -> dict[str, Any]:
    """Compile a step's kernel in bf16 as a launch would, its tensors aligned to 16 bytes, and look into the result."""
    constants |= {
        "H": H, "P": P, "ROWS": tile.rows, "UNITS": tile.units, "BLOCK": tile.block, "OVERLAP": tile.overlap
    }  # fmt: skip
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return _compile(getattr(triton_steps, kernel), _POINTERS[kernel] | {"t": "i32", "B": "i32"}, constants, options)


def compile_pooling(kernel: str, H: int) -> dict[str, Any]:
    """The same for a kernel of a QRNN, which no tile and no batch size changes."""
    types = _POINTERS[kernel] | {"k": "fp32", "T": "i32", "B": "i32"}
    constants = {"H": H, "UNITS": triton_qrnn.UNITS}
    return _compile(getattr(triton_qrnn, kernel), types, constants, {"num_warps": triton_qrnn.WARPS})


def compile_loss() -> dict[str, Any]:
    """The same for the kernel of the loss."""
    options = {"num_warps": triton_loss.WARPS}
    types = _POINTERS["softmax_gradient"]
    return _compile(triton_loss.softmax_gradient, types, {"BLOCK": triton_loss.BLOCK}, options)


def compile_copy(*, masked: bool, transposed: bool) -> dict[str, Any]:
    """The same for the kernel that masks, pads and casts weights, as the forward pass with or without weight drop."""
    constants: dict[str, Any] = {"MASKED": masked, "TRANSPOSED": transposed, "BLOCK": COPY_BLOCK}
    constants |= {} if masked else {"mask": None}
    constants |= {} if transposed else {"copy_t": None}
    return _compile(triton_steps.masked_copy, _POINTERS["masked_copy"], constants, {})


def _compile(
    function: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, int]
) -> dict[str, Any]:
    signature = {name: "constexpr" if name in constants else types[name] for name in function.arg_names}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, (name, kind) in enumerate(signature.items())
        if kind[0] == "*" or (name, kind) == ("P", "i32")
    }
    source = ASTSource(function, signature, constants, aligned)
    compiled = triton.compile(source, target=_H100, options=options)
    return _inspect(compiled.asm["cubin"]) | {"smem": compiled.metadata.shared, "pipelined": _pipelined(compiled.asm)}


def _tool(name: str, *arguments: str | Path) -> str:
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def _inspect(cubin: bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = _tool("cuobjdump", "-res-usage", path), _tool("nvdisasm", "-c", path)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    operations = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", code, re.MULTILINE)
    named = {"spills": {"LDL", "STL"}, "products": {"HGMMA", "HMMA"}, "copies": {"LDGSTS"}}
    counts = {name: sum(operation in group for operation in operations) for name, group in named.items()}
    return {"registers": int(registers), "stack": int(stack), **counts, "wgmma": "HGMMA" in operations}


def _pipelined(asm: dict[str, str]) -> bool:
    """Whether products of a block run while later blocks are copied: the loop waits for all copies but the last."""
    waits = [int(left) for left in re.findall(r"cp\.async\.wait_group\s+(\d+)", asm["ptx"])]
    return "cp.async.cg" in asm["ptx"] and max(waits, default=0) > 0


def report(hidden: int, batch: int, forward: Tile, backward: Tile) -> list[dict[str, Any]]:
    """The three kernels of a layer: forward, backward, and backward of the last step, which has no product."""
    P = padded_size(hidden, forward, backward)
    shared = {"hidden": hidden, "batch": batch, "padded": P}
    return [
        shared | {"kernel": "forward", "tile": str(forward)}
        | compile_step("forward_step", hidden, P, forward, KEEP=True),
        shared | {"kernel": "backward", "tile": str(backward)}
        | compile_step("backward_step", hidden, P, backward, SPLIT=backward.split, LAST=False),
        shared | {"kernel": "last", "tile": str(backward)}
        | compile_step("backward_step", hidden, P, backward, SPLIT=1, LAST=True),
    ]  # fmt: skip


def main() -> None:
    """Compile for every size of the presets, or with --all every tile that the sitting tries."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--all", action="store_true", help="every tile that tests.gpu_lstm times")
    parser.add_argument("--sizes", nargs="+", default=_SIZES, metavar="UNITSxBATCH")
    arguments = parser.parse_args()
    sys.stdout.write(json.dumps({"kernel": "loss"} | compile_loss()) + "\n")
    for masked, transposed in ((False, False), (False, True), (True, False), (True, True)):
        line = {"kernel": "copy", "masked": masked, "transposed": transposed}
        sys.stdout.write(json.dumps(line | compile_copy(masked=masked, transposed=transposed)) + "\n")
    for size in arguments.sizes:
        hidden, batch = map(int, size.split("x"))
        for kernel in ("pool_forward", "pool_backward"):
            line = {"hidden": hidden, "kernel": kernel} | compile_pooling(kernel, hidden)
            sys.stdout.write(json.dumps(line) + "\n")
        pairs = [choose_tiles(hidden, batch, torch.bfloat16)]
        if arguments.all:
            from tests.nn.kernels.tiles import tiles_to_try

            forward, backward = tiles_to_try(hidden, batch)
            pairs += [(tile, pairs[0][1]) for tile in forward] + [(pairs[0][0], tile) for tile in backward]
        for pair in pairs:
            for line in report(hidden, batch, *pair):
                sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
