#pragma once

// The ordered head of a Gemma 4 drafter: score centroids first, then only the tokens of the best ones
// (masked embedder of transformers' Gemma4AssistantForCausalLM).

#include "ggml.h"

struct llama_mtp_ordered_head {
    ggml_tensor * centroids = nullptr; // [n_embd, n_centroids]
    ggml_tensor * ordering  = nullptr; // I32 [n_vocab], token ids, centroid-major
    ggml_tensor * rows      = nullptr; // [n_embd, n_vocab]

    int64_t top_k       = 0;     // centroids whose tokens are scored
    bool    rows_sorted = false; // rows are stored in `ordering`'s order rather than by token id

    explicit operator bool() const { return centroids != nullptr; }

    struct scores {
        ggml_tensor * values; // F32 [n_scores, n_outputs]
        ggml_tensor * ids;    // I32 [n_scores, n_outputs], the token of each; null where its index is the token
    };

    // cur: [n_embd, n_outputs] -> the scores of the chosen centroids' tokens
    scores build_scores(ggml_context * ctx, ggml_tensor * cur) const;

    // the same as logits [n_vocab, n_outputs], -inf for tokens whose centroid was not chosen
    ggml_tensor * build_logits(ggml_context * ctx, ggml_tensor * cur) const;
};
