"""Compiles the kernels for GPUs that need not be there, and prints what they take: run as a script, since kernels that
were imported for Triton's interpreter cannot be compiled."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from kvrag_kernels.packet_attention.tiles import tile_shape
from kvrag_kernels.packet_attention.triton import attend_units, merge_parts, write_rows
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    **dict.fromkeys(("query", "anchor", "key", "value", "output"), "*bf16"),
    **dict.fromkeys(("cos", "sin", "piece_scales", "group_scale", "group_bias", "partial", "partial_lse"), "*fp32"),
    **dict.fromkeys(("counts", "units", "items", "entries", "pieces", "lanes", "row_runs", "runs"), "*i32"),
    **dict.fromkeys(("piece_offsets", "places"), "*i64"),
    "scaling": "fp32",
}


def resources(kernel, constants: dict, architecture: int, warps: int = 4, stages: int = 3) -> dict:
    """Bytes of stack and shared memory of a compiled kernel, and the instructions that matter."""
    names = kernel.arg_names
    types = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in names}
    aligned = [n for n in names if types[n].startswith("*") or n.endswith(("_row", "_head"))]
    source = ASTSource(
        kernel,
        types,
        constexprs={(names.index(n),): v for n, v in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", told.stdout)}
    text = compiled.asm["ptx"]
    return {
        "registers": found["REG"],
        "stack": found["STACK"],
        "shared": compiled.metadata.shared,
        "asynchronous": "cp.async" in text,
        "warpgroups": "wgmma" in text,
    }


def attention(architecture: int, rows: int, group: int, head_dim: int, form: str) -> dict:
    tile = tile_shape(rows, group, head_dim, hopper=architecture >= 90, encoded=form != "raw")
    constants = {
        "HEADS": 8,
        "GROUP": group,
        "D": head_dim,
        "PADDED": 1 << (head_dim - 1).bit_length(),
        "HALF": head_dim // 2,
        "BLOCK_ROWS": tile.block_rows,
        "BLOCK_TOKENS": tile.block_tokens,
        "INT8": form == "int8",
        "FP8": form == "fp8",
        "UPCAST": False,
        "EARLY": architecture >= 90,
    }
    found = resources(attend_units, constants, architecture, tile.warps, tile.stages)
    return found | {"rows": rows, "group": group, "head_dim": head_dim, "form": form, "block_rows": tile.block_rows}


if __name__ == "__main__":
    architecture = int(sys.argv[1])
    form = sys.argv[2]
    shapes = [tuple(map(int, shape.split(","))) for shape in sys.argv[3:]]
    small = {"D": 128, "PADDED": 128, "EARLY": architecture >= 90}
    print(  # noqa: T201
        json.dumps(
            {
                "attend": [attention(architecture, *shape, form) for shape in shapes],
                "merge": resources(merge_parts, small | {"BLOCK_PARTS": 16}, architecture),
                "write": resources(write_rows, small, architecture, warps=1),
            }
        )
    )
