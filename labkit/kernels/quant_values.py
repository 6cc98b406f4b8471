"""Codes of eight and four bits to numbers, in registers, by instructions that a GPU has many of.

Hopper converts whole numbers at a quarter of the rate, or less, of everything else it does: in a kernel that reads
weights that alone takes longer than reading them. So bytes are moved to where a floating-point number has its digits,
four codes a register. Every result is exact. Elsewhere (another maker's GPU, the interpreter) Triton converts.
"""

from __future__ import annotations

import torch

from labkit.kernels.language import INTERPRETED, tl, triton
from labkit.kernels.nf4 import LEVELS as _LEVELS

PTX = tl.constexpr(not INTERPRETED and torch.version.hip is None)
LEVELS = tl.constexpr(_LEVELS)

# A byte under the exponent of 2**23 is 2**23 + byte; with its sign bit turned round that is code + 128 + 2**23.
_INT8 = tl.constexpr("""{ .reg .b32 t;
xor.b32 t, $4, 0x80808080;
prmt.b32 $0, t, 0x4B000000, 0x7540; prmt.b32 $1, t, 0x4B000000, 0x7541;
prmt.b32 $2, t, 0x4B000000, 0x7542; prmt.b32 $3, t, 0x4B000000, 0x7543;
add.f32 $0, $0, 0fCB000080; add.f32 $1, $1, 0fCB000080; add.f32 $2, $2, 0fCB000080; add.f32 $3, $3, 0fCB000080; }""")

# E4M3's seven bits below the sign, put across bfloat16's exponent and fraction, are the number times 2**-120,
# subnormal ones included; 0x7B80 is 2**120.
_FP8 = tl.constexpr("""{ .reg .b32 x, p, q, up, zero;
mov.b32 x, $2; mov.b32 up, 0x7B807B80; mov.b32 zero, 0x80008000;
prmt.b32 p, x, 0, 0x1404; shr.b32 q, p, 4; and.b32 q, q, 0x07F007F0; lop3.b32 p, p, 0x80008000, q, 0xEA;
fma.rn.bf16x2 $0, p, up, zero;
prmt.b32 p, x, 0, 0x3424; shr.b32 q, p, 4; and.b32 q, q, 0x07F007F0; lop3.b32 p, p, 0x80008000, q, 0xEA;
fma.rn.bf16x2 $1, p, up, zero; }""")


def _nf4_levels(levels: torch.Tensor) -> str:
    """PTX that looks eight codes up at once: a permutation picks four of eight bytes by three bits of four codes.

    Levels 0–7 and 8–15, and of each the high and the low byte, are four tables; a code's fourth bit, spread over a
    byte, chooses between the halves.
    """
    bits = levels.bfloat16().view(torch.int16).tolist()

    def table(first: int, shift: int) -> str:
        bytes_ = [bits[first + i] >> shift & 0xFF for i in range(4)]
        return f"{sum(byte << 8 * i for i, byte in enumerate(bytes_)):#010x}"

    lines = ["{ .reg .b32 x, s, t, m, h, l, g;", "mov.b32 x, $4; and.b32 s, x, 0x77777777; shl.b32 t, x, 4;"]
    for high, mask in ((0, "0xD9C8"), (1, "0xFBEA")):
        if high:
            lines.append("shr.b32 s, s, 16;")
        lines.append(f"prmt.b32 m, t, x, {mask};")
        for name, shift in (("h", 8), ("l", 0)):
            lines.append(f"prmt.b32 {name}, {table(0, shift)}, {table(4, shift)}, s;")
            lines.append(f"prmt.b32 g, {table(8, shift)}, {table(12, shift)}, s;")
            lines.append(f"lop3.b32 {name}, g, {name}, m, 0xE4;")
        lines.append(f"prmt.b32 ${high}, l, h, 0x7351; prmt.b32 ${high + 2}, l, h, 0x6240;")
    return "\n".join([*lines, "}"])


_EXACT = torch.tensor(_LEVELS)
_NF4 = tl.constexpr(_nf4_levels(_EXACT))
_NF4_REST = tl.constexpr(_nf4_levels(_EXACT - _EXACT.bfloat16().float()))


@triton.jit
def int8_floats(codes):
    """Bytes that hold INT8 as float32."""
    if PTX:
        return tl.inline_asm_elementwise(_INT8, "=r,=r,=r,=r,r", [codes], dtype=tl.float32, is_pure=True, pack=4)
    else:
        return codes.to(tl.int8, bitcast=True).to(tl.float32)


@triton.jit
def fp8_values(codes, dtype: tl.constexpr):
    """Bytes that hold E4M3 in a dtype. E4M3's two NaN become ±480 in bfloat16: weights are finite."""
    if PTX and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(_FP8, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        return codes.to(tl.float8e4nv, bitcast=True).to(dtype)


@triton.jit
def nf4_levels(codes, dtype: tl.constexpr):
    """Bytes that hold two codes of NF4: the levels of the high halves and of the low halves.

    For float32 to 17 bits; for other dtypes rounded to bfloat16.
    """
    if PTX:
        even, odd = tl.inline_asm_elementwise(
            _NF4, "=r,=r,=r,=r,r", [codes], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
        even, odd = even.to(dtype), odd.to(dtype)
        if dtype == tl.float32:
            even_rest, odd_rest = tl.inline_asm_elementwise(
                _NF4_REST, "=r,=r,=r,=r,r", [codes], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
            )
            even += even_rest.to(dtype)
            odd += odd_rest.to(dtype)
        return even, odd
    else:
        return _pick(codes >> 4).to(dtype), _pick(codes & 15).to(dtype)


@triton.jit
def _pick(code):
    level = tl.full(code.shape, LEVELS[0], tl.float32)
    for i in tl.static_range(1, 16):
        level = tl.where(code == i, LEVELS[i], level)
    return level
