"""Getting, patching and building the pinned llama.cpp (standard library only)."""
