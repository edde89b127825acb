#pragma once

// A Gemma 4 drafter reads the keys and values, the embedding table and the hidden rows of its target.

struct llama_model;

// throws std::runtime_error, which names what differs, unless the drafter can run on the target: where it cannot,
// its graph would read beyond the target's tensors
void llama_mtp_check_pair(const llama_model & drafter, const llama_model & target);
