"""What merging does to the keys of a pair."""
