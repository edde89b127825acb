#pragma once

// Merged files: a base model and its MTP drafter in one GGUF (docs/format.md of gguf-mtp).
//
// llama_model_load_from_file() on a merged file loads the base; the functions here reach the drafter.
// They stand beside the llama.h API and change none of its structs.

#include "llama.h"

// A model path may end in this, for the drafter that is embedded in the file. It lets every place that passes a model
// around by its path (fitting to memory, the draft model's parameters) reach the drafter.
#define LLAMA_MTP_FRAGMENT_DRAFTER "#mtp"

#ifdef __cplusplus
extern "C" {
#endif

    // true if the file is a GGUF that carries an embedded drafter; false for anything else, unreadable files included
    LLAMA_API bool llama_mtp_file_has_heads(const char * path_model);

    // the --spec-type that runs the drafter in the file, such as "draft-mtp"; NULL where there is none. The path may end
    // in the fragment.
    LLAMA_API const char * llama_mtp_file_spec_type(const char * path_model);

    // load the drafter embedded in a merged file; returns NULL on failure, as llama_model_load_from_file() does
    LLAMA_API struct llama_model * llama_model_load_mtp_from_file(
                             const char * path_model,
              struct llama_model_params   params);

    // Drafting in one graph. With n_steps > 0, a decode of a Gemma 4 drafter's context drafts n_steps tokens for every
    // token of its batch, all of which must be outputs and of sequences that have a backend sampler (the sampler itself
    // does not run; it makes room for the result). For output i, with n candidates a step:
    //   llama_get_sampled_candidates_ith(): the n_steps tokens drafted, then the n*n_steps candidates, step by step
    //   llama_get_sampled_probs_ith():      the candidates' n*n_steps probabilities
    // where n is at most LLAMA_MTP_DRAFT_TOP_K. There are no logits and no hidden rows. 0 goes back to single steps.
    // Returns false, and changes nothing, for any other model and for more than LLAMA_MTP_DRAFT_STEPS_MAX steps.
    #define LLAMA_MTP_DRAFT_TOP_K     10
    #define LLAMA_MTP_DRAFT_STEPS_MAX 64
    LLAMA_API bool llama_mtp_set_draft(struct llama_context * ctx, int32_t n_steps);

    // How many splits the graph of the last draft had: 1 where all of it ran on one device, 0 before the first.
    LLAMA_API int32_t llama_mtp_draft_n_splits(const struct llama_context * ctx);

    // For temp > 0, the next drafts of the sequence are argmax(logit/temp + noise) of its candidates instead of the most
    // probable, and the probabilities delivered are at that temperature. noise: F32 [n_steps, LLAMA_MTP_DRAFT_BUCKETS],
    // copied; a token takes the value at its id modulo LLAMA_MTP_DRAFT_BUCKETS. temp 0 ends it.
    #define LLAMA_MTP_DRAFT_BUCKETS 2048
    LLAMA_API void llama_mtp_set_draft_noise(struct llama_context * ctx, llama_seq_id seq_id, float temp,
                                             const float * noise, int32_t n_steps);

    // The devices of the layers whose keys and values a Gemma 4 drafter of this target reads, without the CPU. Writes at
    // most n_max; returns how many there are, or -1 for other targets and for layers that are split over devices.
    LLAMA_API int32_t llama_mtp_drafter_devices(const struct llama_model * target, ggml_backend_dev_t * devices, int32_t n_max);

#ifdef __cplusplus
}
#endif
