#pragma once

// Lets `-m merged.gguf` alone run MTP: the heads in the model file stand in for `-md`.

#include "common.h"
#include "log.h"

#include "llama-mtp.h"

#include <algorithm>

// call when params.model.path is final. An explicit draft model wins; so does any explicit `--spec-type`
// that leaves draft-mtp out (`none` appends to the default, so that {none} alone means that nothing was asked for).
inline void common_mtp_use_embedded_heads(common_params & params) {
    auto & spec = params.speculative;

    if (params.model.path.empty() || spec.has_dft()) {
        return;
    }

    const auto & types = spec.types;
    const bool is_default = types == std::vector<common_speculative_type>{ COMMON_SPECULATIVE_TYPE_NONE };
    const bool asks_mtp   = std::find(types.begin(), types.end(), COMMON_SPECULATIVE_TYPE_DRAFT_MTP) != types.end();

    if ((is_default || asks_mtp) && llama_mtp_file_has_heads(params.model.path.c_str())) {
        LOG_INF("%s: drafting with the MTP heads inside '%s' (--spec-type none turns this off)\n", __func__, params.model.path.c_str());
        spec.types.push_back(COMMON_SPECULATIVE_TYPE_DRAFT_MTP);
        spec.draft.mparams.path = params.model.path + LLAMA_MTP_FRAGMENT_DRAFTER;
    }
}
