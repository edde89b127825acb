#pragma once

// The kinds of drafter that a merged file may carry, and what is asked of one before it is loaded.

#include "llama-arch.h"

#include <functional>
#include <string>

struct llama_model_loader;

// The key that marks the metadata of an embedded drafter, for llama_mtp_check_pair(): llama_model keeps it.
#define LLAMA_MTP_KEY_EMBEDDED "mtp.embedded"

struct llama_mtp_family {
    const char * arch;
    const char * mark;      // a tensor that tells it from others of its architecture, or nullptr
    const char * spec_type; // the --spec-type that runs it
    uint32_t     n_layer;   // how many, 0: any
    bool         experts;   // may be a mixture of experts
};

// the first row that fits, nullptr where none does
const llama_mtp_family * llama_mtp_find_family(const std::string & arch, const std::function<bool(const char *)> & has_tensor);

// all architectures, for messages
std::string llama_mtp_known_archs();

// throws std::runtime_error unless the loader, whose metadata and tensors are the drafter's, can go on with it: values
// and types that llama.cpp takes for granted would end the program
void llama_mtp_check_drafter(llama_model_loader & ml);
