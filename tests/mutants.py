"""Loops that are wrong in one way each; the tier meant for the slip must fail on them."""

from collections.abc import Sequence

from gguf_mtp.runtime.speculative import SpeculativeLoop, Verified


class ForgetsRollback(SpeculativeLoop):
    """Goes on behind the rejected drafts."""

    def _roll_back(self, position: int, accepted: int, width: int) -> int:
        return position + width


class RollsBackOneTooFew(SpeculativeLoop):
    """Leaves the first rejected draft in the cache."""

    def _roll_back(self, position: int, accepted: int, width: int) -> int:
        return super()._roll_back(position, min(accepted + 1, width - 1), width)


class AcceptsOneTooMany(SpeculativeLoop):
    """Emits the first draft that the target did not choose."""

    def _accept(self, drafted: Sequence[int], verified: Verified) -> int:
        return min(super()._accept(drafted, verified) + 1, len(drafted))
