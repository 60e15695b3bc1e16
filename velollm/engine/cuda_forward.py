"""One pass of a llama-like model over a paged cache: from tokens to logits, on whatever executor it is given."""

from __future__ import annotations

import attrs

from velollm.engine.cuda_batch import Inputs
from velollm.engine.cuda_model import CudaModel, Layer
from velollm.gpu.arrays import Array
from velollm.gpu.attention import paged_attention
from velollm.gpu.executor import Executor
from velollm.gpu.kv import write_kv
from velollm.gpu.layers import embed, rms_norm, silu_mul

__all__ = ["Forward"]


@attrs.frozen(kw_only=True)
class Forward:
    """`model` over `pages` [2 * layers, blocks, kv_heads, 16, head_dim]: the keys of a layer, then its values."""

    model: CudaModel
    pages: Array

    def logits(self, on: Executor, inputs: Inputs, out: Array | None = None) -> Array:
        """Logits [rows, vocabulary] of the rows that are wanted, in `out` where that is given."""
        model = self.model
        residual: Array = embed(model.embedding, inputs.tokens, on=on)
        x: Array | None = None
        for number, layer in enumerate(model.layers):
            x = self._norm(on, x, residual, layer.attention_norm)
            x = self._attend(on, x, layer, number, inputs)
            x = self._norm(on, x, residual, layer.feed_forward_norm)
            x = on.multiply(silu_mul(on.multiply(x, layer.gate_up), on=on), layer.down)
        x = self._norm(on, x, residual, model.output_norm)
        if inputs.wanted is not None:
            x = embed(x, inputs.wanted, on=on)
        return on.multiply(x, model.output, out=out)

    def _norm(self, on: Executor, x: Array | None, residual: Array, weight: Array) -> Array:
        """The normed sum of `residual` and `x`, which `residual` becomes; without `x` that of `residual`."""
        epsilon = self.model.shape.epsilon
        normed: Array
        if x is None:
            normed = rms_norm(residual, weight, epsilon=epsilon, on=on)
        else:
            normed = rms_norm(x, weight, epsilon=epsilon, residual=residual, on=on)
        return normed

    def _attend(self, on: Executor, x: Array, layer: Layer, number: int, inputs: Inputs) -> Array:
        shape, keys, values = self.model.shape, self.pages[2 * number], self.pages[2 * number + 1]
        qkv = on.multiply(x, layer.qkv, bias=layer.bias)
        queries: Array = write_kv(
            qkv.reshape(-1, shape.heads + 2 * shape.kv_heads, shape.head_dim),
            keys,
            values,
            inputs.slots,
            inputs.positions,
            self.model.rotations,
            halves=shape.halves,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            epsilon=shape.epsilon,
            on=on,
        )
        mixed = on.empty(queries.shape, queries.scalar)
        for part in inputs.parts:
            paged_attention(
                queries[part.rows],
                keys,
                values,
                part.tables,
                part.lengths,
                part.starts,
                max_queries=part.longest,
                window=shape.window,
                out=mixed[part.rows],
                on=on,
            )
        return on.multiply(mixed.reshape(-1, shape.heads * shape.head_dim), layer.output)
