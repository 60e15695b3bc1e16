"""What could be wrong in a kernel: each mutant replaces one place of its source, and some test must notice.

Those of `RACES` change nothing that a result would show for sure: ThreadSanitizer finds them.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["FAST", "MUTANTS", "RACES"]

Change = tuple[str, str]

MUTANTS: Mapping[str, Mapping[str, Change]] = {
    "paged_decode": {
        "tail mask off by one": ("return behind >= 0 &&", "return behind >= -1 &&"),
        "own token not seen": ("return behind >= 0 &&", "return behind >= 1 &&"),
        "window off by one": ("behind < how.window", "behind <= how.window"),
        "window begins a block late": ("position - how.window + 1;", "position - how.window + 17;"),
        "waits for one group too few": ("copy_wait<P::STAGES - 1>", "copy_wait<P::STAGES>"),
        "values past the context read": ("at, values + from, row < tokens", "at, values + from, row <= tokens"),
        "stride of a page without the heads": ("(u64)table[page] * kv_heads + head", "(u64)table[page] + head"),
        "next page instead of the next of the warp": ("page < to; page += P::WARPS", "page < to; page += P::WARPS + 1"),
        "split rounded down": ("(end - begin + splits - 1) / splits", "(end - begin) / splits"),
        "sum not shrunk": ("total[half] = total[half] * shrink[half] + sum", "total[half] = total[half] + sum"),
        "values not shrunk": ("sums[column][i] *= shrink[i >> 1]", "sums[column][i] *= shrink[i & 1]"),
        "maximum of half a row": ("top = fmaxf(top, shuffle_xor(top, 2))", "top = fmaxf(top, shuffle_xor(top, 0))"),
        "one warp forgotten": ("for (int w = 0; w < P::WARPS; w++) {", "for (int w = 0; w < P::WARPS - 1; w++) {"),
        "sink forgotten": ("shrink + exp2_fast(sink - top)", "shrink"),
        "slope of another head": ("slopes[own] : 0", "slopes[head] : 0"),
        "query of another row": ("half, query = row / group", "half, query = row % group"),
        "cap forgotten": ("if (how.cap > 0)", "if (how.cap > 1e9f)"),
        "rows of the second half from the first": ("(at + step * 16 + 8)", "(at + step * 16)"),
        "keys not transposed as they must be": ("load_matrices<false>(b, keys", "load_matrices<true>(b, keys"),
        "barrier before the merge removed": (
            "  __syncthreads();  // the rings are no longer needed",
            "  // the rings are no longer needed",
        ),
        "barrier within the merge removed": (
            "  __syncthreads();\n\n  for (int i = threadIdx.x; i < rows",
            "\n  for (int i = threadIdx.x; i < rows",
        ),
        "slot filled while it is read": ("    __syncwarp();  // the slot is read: it may be filled again\n", ""),
        "copies of other lanes not waited for": (
            "    copy_wait<P::STAGES - 1>();\n    __syncwarp();\n",
            "    copy_wait<P::STAGES - 1>();\n",
        ),
    },
    "paged_prefill": {
        "tail mask off by one": ("return behind >= 0 &&", "return behind >= -1 &&"),
        "last token forgotten": ("first + rows - 1) / group) + 1", "first + rows - 1) / group)"),
        "token past the context read": ("const bool there = token < length;", "const bool there = token <= length;"),
        "waits for nothing": ("copy_wait<1>()", "copy_wait<2>()"),
        "stage not turned": ("stage ^= 1;", "stage ^= 0;"),
        "values not shrunk": ("sums[column][i] *= shrink[i >> 1]", "sums[column][i] *= shrink[i & 1]"),
        "sum not shrunk": ("total[half] = total[half] * shrink[half] + sum", "total[half] = total[half] + sum"),
        "row of another head": ("head * group + absolute % group : 0", "head * group + row % group : 0"),
        "stride of a page without the heads": (
            "(u64)table[token / BLOCK] * kv_heads + head",
            "(u64)table[token / BLOCK] + head",
        ),
        "window begins a block late": ("position - how.window + 1;", "position - how.window + 17;"),
        "rows beyond the tile written": ("if (row >= rows) continue;", ""),
        "stage filled while it is read": ("    __syncthreads();  // the stage is read: it may be filled again\n", ""),
        "copies of others not waited for": ("    __syncthreads();  // everybody's copies have landed\n", ""),
    },
    "paged_attention_simt": {
        "tokens counted twice": ("0.5f * warp_sum(mine)", "warp_sum(mine)"),
        "half of a key forgotten": ("score += shuffle_xor(score, 16);", ""),
        "page read while it is written": (
            "    __syncthreads();\n#pragma unroll\n    for (int r = 0",
            "#pragma unroll\n    for (int r = 0",
        ),
        "page written while it is read": ("    }\n    __syncthreads();\n  }\n", "    }\n  }\n"),
        "values scaled as keys": ("widen(values[base + i]) * value_scale", "widen(values[base + i]) * key_scale"),
        "last page forgotten": ("end = last_position / BLOCK + 1", "end = last_position / BLOCK"),
        "split of another tile": ("tile = blockIdx.x / splits", "tile = blockIdx.x % splits"),
        "part without its maximum": ("part[HEAD_DIM] = maximum[r];", "part[HEAD_DIM] = 0;"),
    },
    "combine": {
        "a split dropped": (
            "for (int s = 0; s < splits; s++) {\n      const",
            "for (int s = 0; s < splits - 1; s++) {\n      const",
        ),
        "sums not weighted": ("sum += weight(part[head_dim], top) * part[head_dim + 1]", "sum += part[head_dim + 1]"),
        "sink of another head": ("(int)(row % heads)", "0"),
    },
    "write_kv": {
        "values turned": ("if (!is_value && pair < rotary / 2)", "if (pair < rotary / 2)"),
        "what turns by the wrong half": ("apart ? pair + rotary / 2", "apart ? pair + head_dim / 2"),
        "turned the other way": ("before * cosine - y[e] * sine", "before * cosine + y[e] * sine"),
        "no slot is a slot": ("slot >= 0", "slot >= -1"),
        "place in the block forgotten": ("* BLOCK + (u64)(slot % BLOCK)) * head_dim", "* BLOCK) * head_dim"),
        "multiplied instead of divided": ("narrow<CACHED>(y[e] / scale)", "narrow<CACHED>(y[e] * scale)"),
        "norm before the bias": ("squares += x[e] * x[e] + y[e] * y[e];", ""),
        "bias of the first head": ("bias[head * head_dim + second[e]]", "bias[second[e]]"),
        "norm of the other": (
            "is_query ? q_norm : is_value ? nullptr : k_norm",
            "is_query ? k_norm : is_value ? nullptr : q_norm",
        ),
        "position of another token": ("positions[token] * rotary", "positions[0] * rotary"),
    },
    "copy_blocks": {
        "last chunk forgotten": ("i < size / 16", "i < size / 16 - 1"),
        "planes mixed up": ("blockIdx.y * to_plane", "blockIdx.y * from_plane"),
        "pair mixed up": (
            "pairs[blockIdx.x * 2], target = pairs[blockIdx.x * 2 + 1]",
            "pairs[blockIdx.x * 2 + 1], target = pairs[blockIdx.x * 2]",
        ),
    },
    "rms_norm": {
        "epsilon outside of the root": ("(float)width + epsilon);", "(float)width) + epsilon;"),
        "one warp's sum": ("total += scratch[w];", "total = scratch[w];"),
        "sum read before it is there": (
            "scratch[warp_index()] = value;\n  __syncthreads();",
            "scratch[warp_index()] = value;",
        ),
        "residual not kept": ("sum[i] = stored;", ""),
    },
    "gated": {
        "gate for up": ("+ row * 2 * width + width))", "+ row * 2 * width))"),
        "past the end of a row": ("if (i >= width / N) return;", ""),
    },
    "embedding": {
        "one entry too many": ("id < entries", "id <= entries"),
        "entry before the first": ("id >= 0 && ", ""),
    },
    "argmax": {
        "of equals the last": ("b.index < a.index", "b.index > a.index"),
        "a lane forgotten": (
            "for (int mask = 16; mask > 0; mask >>= 1)\n    mine",
            "for (int mask = 8; mask > 0; mask >>= 1)\n    mine",
        ),
        "best read before it is there": (
            "scratch[warp_index()] = mine;\n  __syncthreads();",
            "scratch[warp_index()] = mine;",
        ),
    },
    "sample": {
        "cut a digit too low": ("digit = d + 1;", "digit = d;"),
        "one round too few": ("round < 10", "round < 9"),
        "smallest instead of largest": ("- logf(-logf(u))", "+ logf(-logf(u))"),
        "position forgotten": ("(u32)positions[number], 0, 0", "0, 0, 0"),
        "word of another token": ("random.word[k]", "random.word[0]"),
        "sums overwritten while they are read": (
            "values[k] += scratch[w * N + k];\n  }\n  __syncthreads();",
            "values[k] += scratch[w * N + k];\n  }",
        ),
    },
    "verify": {
        "padding accepted": ("lane < drafted &&", "lane <= drafted &&"),
        "next token forgotten": ("lane <= stand ?", "lane < stand ?"),
    },
}

RACES = {
    ("paged_decode", "slot filled while it is read"),
    ("paged_decode", "copies of other lanes not waited for"),
    ("sample", "sums overwritten while they are read"),
}
FAST = {  # those that are tried at every run; all of them end to end
    ("combine", "a split dropped"),
    ("paged_decode", "tail mask off by one"),
    ("paged_decode", "waits for one group too few"),
    ("paged_decode", "barrier within the merge removed"),
}
