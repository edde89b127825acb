"""MTP drafters out of `.litertlm` packages: found by dataflow, every constant accounted for."""
