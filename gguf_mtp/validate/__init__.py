"""Measuring whether output with MTP heads equals output without, and what the heads gain."""
