"""Readers: bytes in, frozen `TensorRef`s out, no policy."""
