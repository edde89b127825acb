#pragma once

// Picks the half of a merged GGUF that a model is loaded from (docs/format.md of gguf-mtp).

#include <string>

struct llama_model_loader;

struct llama_mtp_source {
    enum part_t { BASE, DRAFTER, WHOLE };

    std::string path;        // without the fragment
    part_t      part = BASE;

    // name: a path, perhaps with a fragment (llama-mtp.h); a file whose own name ends like one is taken literally
    explicit llama_mtp_source(const std::string & name);

    // the name that stands for base and drafter, all tensors under their stored names; no path is one
    static std::string whole(const std::string & path);

    // narrow the loader's tensors and metadata to the chosen part; a file that is not merged is left as it is.
    // call once all tensors are listed, before anything is derived from them
    // throws std::runtime_error when the drafter is asked for and there is none, or it cannot be used
    void narrow(llama_model_loader & ml) const;
};
