#pragma once

// How Gemma 4's MTP heads draft; part of common_params_speculative_draft.

#include <string>

struct common_mtp_params {
    bool one_graph  = true;  // all steps of a draft in one compute graph
    bool auto_depth = true;  // draft and verify 0 to n_max tokens, as measured acceptance and costs suggest; else n_max

    std::string stats_path; // where programs that print statistics put them as JSON
};
