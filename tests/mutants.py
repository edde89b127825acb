"""Loops that are wrong in one way each; the tier meant for the slip must fail on them."""

from collections.abc import Sequence

from gguf_mtp.runtime.bindings import Row
from gguf_mtp.runtime.speculative import Drafter, SpeculativeLoop, Verified


class ForgetsRollback(SpeculativeLoop):
    """Goes on behind the rejected drafts."""

    def _roll_back(self, position: int, accepted: int, width: int) -> int:
        return position + width


class RollsBackOneTooFew(SpeculativeLoop):
    """Leaves the first rejected draft in the cache."""

    def _roll_back(self, position: int, accepted: int, width: int) -> int:
        return super()._roll_back(position, min(accepted + 1, width - 1), width)


class RollsBackOneTooMany(SpeculativeLoop):
    """Cuts the last accepted token off as well: everything after it is one position early."""

    def _roll_back(self, position: int, accepted: int, width: int) -> int:
        end = super()._roll_back(position, accepted, width) - 1
        self.target.keep(end)
        return end


class AcceptsOneTooMany(SpeculativeLoop):
    """Emits the first draft that the target did not choose."""

    def _accept(self, drafted: Sequence[int], verified: Verified) -> int:
        return min(super()._accept(drafted, verified) + 1, len(drafted))


class AcceptsOneTooFew(SpeculativeLoop):
    """Leaves the last accepted draft to the next round: slow, not wrong."""

    def _accept(self, drafted: Sequence[int], verified: Verified) -> int:
        return max(super()._accept(drafted, verified) - 1, 0)


class ReadsTheNextRow(SpeculativeLoop):
    """Takes each choice from the logits row behind its own."""

    def _verify(self, token: int, drafted: Sequence[int], position: int) -> Verified:
        v = super()._verify(token, drafted, position)
        return Verified(v.choices[1:] + v.choices[-1:], v.prints, v.margins, v.hidden, v.seconds)


class FeedsAnotherToken(SpeculativeLoop):
    """Decodes the token before the newest one a second time in its stead."""

    fed = 0

    def _verify(self, token: int, drafted: Sequence[int], position: int) -> Verified:
        previous, self.fed = self.fed, token
        return super()._verify(previous, drafted, position)


class EmitsTheDraft(SpeculativeLoop):
    """Where target and drafter differ, emits what was drafted."""

    def _emit(self, drafted: Sequence[int], verified: Verified, accepted: int) -> list[int]:
        if accepted == len(drafted):
            return super()._emit(drafted, verified, accepted)
        return list(drafted[: accepted + 1])


class DropsTheBonus(SpeculativeLoop):
    """Leaves out the target's own token behind accepted drafts."""

    def _emit(self, drafted: Sequence[int], verified: Verified, accepted: int) -> list[int]:
        return super()._emit(drafted, verified, accepted)[: max(accepted, 1)]


class RepeatsADraft(SpeculativeLoop):
    """Emits the first accepted draft twice."""

    def _emit(self, drafted: Sequence[int], verified: Verified, accepted: int) -> list[int]:
        emitted = super()._emit(drafted, verified, accepted)
        return emitted[:1] + emitted if accepted else emitted


class KeepsAnotherPrompt(SpeculativeLoop):
    """Leaves the beginning of the prompt before in the cache, for that of this one."""

    previous: tuple[int, ...] = ()

    def _prefill(self, prompt: tuple[int, ...]) -> Verified:
        stale, self.previous = self.previous[:4], prompt
        return super()._prefill(stale + prompt[len(stale) :])


class TakesTheFirstHiddenRow(SpeculativeLoop):
    """Drafts from the row of the round's first token, whatever was accepted."""

    def _next_hidden(self, verified: Verified, accepted: int) -> Row:
        row: Row = verified.hidden[0]
        return row


class TakesTheLastHiddenRow(SpeculativeLoop):
    """Drafts from the last row of the verify batch, a rejected draft's as a rule."""

    def _next_hidden(self, verified: Verified, accepted: int) -> Row:
        row: Row = verified.hidden[-1]
        return row


class TakesAStaleHiddenRow(SpeculativeLoop):
    """Drafts from the row of the round before."""

    stale: Row | None = None

    def _next_hidden(self, verified: Verified, accepted: int) -> Row:
        stale, self.stale = self.stale, super()._next_hidden(verified, accepted)
        return self.stale if stale is None else stale


class DraftsFromAnotherToken(SpeculativeLoop):
    """Tells the drafter the wrong newest token."""

    def _draft(self, token: int, hidden: Row, position: int) -> list[int]:
        return super()._draft(token + 1, hidden, position)


class OffersOldDrafts(SpeculativeLoop):
    """Verifies what was drafted in the round before."""

    old: list[int] | None = None

    def _draft(self, token: int, hidden: Row, position: int) -> list[int]:
        old, self.old = self.old, super()._draft(token, hidden, position)
        return self.old if old is None else old


class Disturbing:
    """A drafter that makes the target decode a token twice, and so moves its cache."""

    def __init__(self, loop: SpeculativeLoop) -> None:
        self.loop = loop
        self.honest: Drafter = loop.drafter

    def draft(self, last: int, hidden: Row, position: int, n: int) -> list[int]:
        drafted = self.honest.draft(last, hidden, position, n)
        target = self.loop.target
        target.keep(position - 1)
        target.decode([last], position - 1)
        return drafted


class DisturbsTheCache(SpeculativeLoop):
    """Its drafter overwrites the last token in the target's cache."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self.drafter = Disturbing(self)
