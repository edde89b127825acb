#pragma once

// For memory fitting: the context that a drafter reads from, without memory of its own.
// Drafters with embeddings or keys and values of their target cannot be measured alone.

#include "common.h"
#include "fit.h"

// whether one of the types drafts with a model that needs its target's context
bool common_mtp_reads_target(const common_params_speculative & params);

class common_mtp_fit_target {
public:
    // set the context that `extra` reads from, if it needs one, and its devices; throws std::runtime_error where that cannot be made
    void prepare(const common_fit_extra_model & extra, const char * path_model, const llama_model_params & mparams,
            const llama_context_params & cparams, ggml_log_level log_level);

private:
    llama_model_ptr   model; // loaded once, its context for every size
    llama_context_ptr context;
};
