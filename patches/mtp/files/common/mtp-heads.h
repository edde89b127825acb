#pragma once

// Lets `-m merged.gguf` alone run MTP, or whatever its drafter is for: what is in the model file stands in for `-md`.
// A merged file given with `-md` means the drafter in it as well.

#include "common.h"
#include "log.h"
#include "speculative.h"

#include "llama-mtp.h"

#include <algorithm>
#include <cstdio>
#include <string>

// types that cannot draft without a model of their own
inline bool common_mtp_needs_drafter(common_speculative_type type) {
    return type == COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE || type == COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3 ||
           type == COMMON_SPECULATIVE_TYPE_DRAFT_MTP    || type == COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH ||
           type == COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK;
}

// call when the models' paths are final; false, with the reason on stderr, where the program should end. An explicit
// draft model wins; so does any explicit `--spec-type` that leaves the drafter's out (`none` appends to the default, so
// that {none} alone means that nothing was asked for). Programs that never draft do not look into the file.
inline bool common_mtp_use_embedded_heads(common_params & params, llama_example ex) {
    auto & spec = params.speculative;
    auto & path = spec.draft.mparams.path;

    const auto & types = spec.types;
    const bool drafts     = ex == LLAMA_EXAMPLE_SPECULATIVE || ex == LLAMA_EXAMPLE_SERVER || ex == LLAMA_EXAMPLE_CLI;
    const bool is_default = types == std::vector<common_speculative_type>{ COMMON_SPECULATIVE_TYPE_NONE };
    const bool is_off     = !is_default && std::all_of(types.begin(), types.end(),
            [](common_speculative_type type) { return type == COMMON_SPECULATIVE_TYPE_NONE; });
    if (!drafts || is_off || params.model.path.empty()) {
        return true;
    }

    const bool is_own    = !spec.has_dft();
    const bool is_simple = std::find(types.begin(), types.end(), COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE) != types.end();
    const std::string file = is_own ? params.model.path : path;
    const char * name = llama_mtp_file_spec_type(file.c_str());
    if (name == nullptr) {
        if (is_own && is_simple) {
            fprintf(stderr, "error: --spec-type draft-simple needs a draft model (-md)\n");
            return false;
        }
        return true;
    }

    const auto type = common_speculative_type_from_name(name);
    if (is_default || std::find(types.begin(), types.end(), type) != types.end()) {
        LOG_INF("%s: drafting with the %s inside '%s' (--spec-type none turns this off)\n", __func__,
                type == COMMON_SPECULATIVE_TYPE_DRAFT_MTP ? "MTP heads" : name, file.c_str());
        if (is_default) {
            spec.types.push_back(type);
        }
        const std::string fragment = LLAMA_MTP_FRAGMENT_DRAFTER;
        const bool is_named = file.size() > fragment.size() && file.compare(file.size() - fragment.size(), fragment.size(), fragment) == 0;
        path = is_named ? file : file + fragment;
        return true;
    }

    // the base in a file given with -md is a small model that may draft for a larger one
    const auto unmet = std::find_if(types.begin(), types.end(), common_mtp_needs_drafter);
    if (unmet != types.end() && (is_own || !is_simple)) {
        fprintf(stderr, "error: --spec-type %s: the drafter inside '%s' is for --spec-type %s; use that, or give another drafter with -md\n",
                common_speculative_type_to_str(*unmet).c_str(), file.c_str(), name);
        return false;
    }
    return true;
}
