"""Embedding requests that arrive together go to the engine together."""

from velollm.batching.layer import BatchingLayer
from velollm.batching.sharing import batch_key, share_tokens

__all__ = ["BatchingLayer", "batch_key", "share_tokens"]
