"""When a program that a test started is taken to hang."""

# Seconds. No measure of speed: far more than a slow machine with loud neighbours needs.
HUNG = 1800
