"""`make bench`: real shapes with random weights, and what a round of them costs."""
