#pragma once

// Merged files: a base model and its MTP drafter in one GGUF (docs/format.md of gguf-mtp).
//
// llama_model_load_from_file() on a merged file loads the base; the functions here reach the drafter.
// They stand beside the llama.h API and change none of its structs.

#include "llama.h"

// A model path may end in a fragment that names a part of a merged file. It lets every place that passes a model
// around by its path (fitting to memory, the draft model's parameters) reach the drafter.
#define LLAMA_MTP_FRAGMENT_DRAFTER "#mtp" // the embedded drafter, as a model of its own
#define LLAMA_MTP_FRAGMENT_WHOLE   "#all" // base and drafter tensors under their stored names

#ifdef __cplusplus
extern "C" {
#endif

    // true if the file is a GGUF that carries an embedded drafter; false for anything else, unreadable files included
    LLAMA_API bool llama_mtp_file_has_heads(const char * path_model);

    // load the drafter embedded in a merged file; returns NULL on failure, as llama_model_load_from_file() does
    LLAMA_API struct llama_model * llama_model_load_mtp_from_file(
                             const char * path_model,
              struct llama_model_params   params);

#ifdef __cplusplus
}
#endif
