"""Getting, patching and building the pinned llama.cpp; standard library only, so it runs before any set-up."""
