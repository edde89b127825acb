"""Gemma 4: what a Hugging Face checkpoint's configuration, tensors and tokenizer mean in GGUF."""
