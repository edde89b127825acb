#pragma once

// Lets `-m merged.gguf` alone run MTP, or whatever its drafter is for: what is in the model file stands in for `-md`.

#include "common.h"
#include "log.h"
#include "speculative.h"

#include "llama-mtp.h"

#include <algorithm>

// call when params.model.path is final. An explicit draft model wins; so does any explicit `--spec-type`
// that leaves the drafter's out (`none` appends to the default, so that {none} alone means that nothing was asked for).
inline void common_mtp_use_embedded_heads(common_params & params) {
    auto & spec = params.speculative;

    if (params.model.path.empty() || spec.has_dft()) {
        return;
    }

    const auto & types = spec.types;
    const bool is_default = types == std::vector<common_speculative_type>{ COMMON_SPECULATIVE_TYPE_NONE };
    const bool is_off     = !is_default && std::all_of(types.begin(), types.end(),
            [](common_speculative_type type) { return type == COMMON_SPECULATIVE_TYPE_NONE; });
    const char * name = is_off ? nullptr : llama_mtp_file_spec_type(params.model.path.c_str());
    if (name == nullptr) {
        return;
    }

    const auto type = common_speculative_type_from_name(name);
    if (is_default || std::find(types.begin(), types.end(), type) != types.end()) {
        LOG_INF("%s: drafting with the %s inside '%s' (--spec-type none turns this off)\n", __func__,
                type == COMMON_SPECULATIVE_TYPE_DRAFT_MTP ? "MTP heads" : name, params.model.path.c_str());
        spec.types.push_back(type);
        spec.draft.mparams.path = params.model.path + LLAMA_MTP_FRAGMENT_DRAFTER;
    }
}
