"""Going on with an answer that was interrupted, so that nobody can tell: the next words, none of them twice, no other.

An interrupted stream is followed by a `Continuation`; what it has said so far is a `Said`; a backend that can go on
from there has `resume`. Where none can, `Retrace` has the whole answer made again and checks it against what was said.
"""

from velollm.continuation.alignment import Clear, Token, Unclear, align, ids_of_piece
from velollm.continuation.boundary import safe_boundary
from velollm.continuation.obstacles import check_resumable, is_greedy, obstacle
from velollm.continuation.prefill import Kept, ended, go_on_by_prefill, prefilled, rest
from velollm.continuation.proof import Proofs, prove
from velollm.continuation.resume import go_on
from velollm.continuation.retrace import Diverged, Retrace
from velollm.continuation.said import Said
from velollm.continuation.seam import Seam
from velollm.continuation.stream import Continuation

__all__ = [
    "Clear",
    "Continuation",
    "Diverged",
    "Kept",
    "Proofs",
    "Retrace",
    "Said",
    "Seam",
    "Token",
    "Unclear",
    "align",
    "check_resumable",
    "ended",
    "go_on",
    "go_on_by_prefill",
    "ids_of_piece",
    "is_greedy",
    "obstacle",
    "prefilled",
    "prove",
    "rest",
    "safe_boundary",
]
