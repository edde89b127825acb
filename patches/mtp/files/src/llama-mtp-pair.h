#pragma once

// A drafter reads hidden rows, embeddings, keys and values of its target.

struct llama_context;
struct llama_model;

// throws std::runtime_error, which names what differs, unless the drafter can run on the model of the context: where
// it cannot, its graph would read beyond the target's tensors, or end the program. Without a context (memory fitting)
// the drafter alone is looked at. Models other than Gemma 4's MTP heads are checked where they come from a merged file.
void llama_mtp_check_pair(const llama_model & drafter, const llama_context * target);
