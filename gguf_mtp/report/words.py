"""What the tiers mean, for a reader who has never heard of them. One row a tier."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """A tier as a headline and a sentence or two, and what its share is a share of."""

    title: str
    text: str
    units: str = "prompts"


TIERS = {
    "L0": Words(
        "The measurement repeats itself",
        "Decoding twice without drafts gives the same bits, and so does decoding in which the "
        "drafter drafts and every draft is thrown away. Without this nothing else could be told.",
    ),
    "L1": Words(
        "Every token is the model's own choice",
        "The text was computed again by the model alone, over batches of the same shape, with no "
        "drafter present. Each token is the one that it ranks first.",
    ),
    "L2": Words(
        "The text is the same, token by token",
        "With drafts the text equals the text of plain decoding, one token at a time.",
    ),
    "L3": Words(
        "Where texts part, it was a tie",
        "Scoring several tokens at once adds numbers in another order than scoring one. Where the "
        "texts part, the two best tokens were closer than that alone moves them.",
    ),
    "L4": Words(
        "Sampled text has the model's distribution",
        "At a temperature above zero tokens are drawn by chance. Many seeded draws with drafts "
        "have the distribution that the model alone gives, by a chi-squared test; the same test "
        "has to find a rule of acceptance that is broken on purpose.",
        units="places",
    ),
    "sampled-identical": Words(
        "Sampled text is the same, token by token",
        "At a temperature above zero the text with drafts equals the text without drafts for the "
        "same seed, but for ties closer than the shape of a batch alone moves them.",
    ),
    "drafts-exact": Words(
        "Every draft is the drafter's own",
        "Each draft was made again from the text. A slip here changes no text, only how often "
        "drafts are accepted, and so shows nowhere else.",
    ),
    "base-identical": Words(
        "The model inside is the original model",
        "The file's base model gives the logits of the original file, bit for bit.",
    ),
    "reference": Words(
        "The numbers are those of another program",
        "Logits of the model and of its drafter agree with those that the reference "
        "implementation computed.",
    ),
    "cross-backend": Words(
        "Devices agree",
        "Another device gives the same logits within a stated tolerance.",
    ),
}


def words(tier: str) -> Words:
    """What to call a tier; one that is not known here goes by its own name."""
    return TIERS.get(tier, Words(tier, ""))
