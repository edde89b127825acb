#include "mtp-stats.h"

#include "json.h"
#include "log.h"

#include "ggml.h"

#include <cstdio>

void common_mtp_stats::verified(size_t n_draft, size_t n_accept) {
    n_rounds++;
    n_drafted  += n_draft;
    n_accepted += n_accept;

    if (accepted_at.size() < n_accept) {
        accepted_at.resize(n_accept, 0);
    }
    for (size_t i = 0; i < n_accept; ++i) {
        accepted_at[i]++;
    }
}

bool common_mtp_stats::write(const common_params & params, const char * program) const {
    const auto & path = params.speculative.draft.mtp.stats_path;
    if (path.empty()) {
        return true;
    }

    common_json positions = common_json::array();
    for (const int32_t n : accepted_at) {
        positions.push_back(n);
    }

    common_json stats = {
        {"program",     program},
        {"n_input",     n_input},
        {"encode_ms",   t_encode_us/1e3},
        {"n_predict",   n_predict},
        {"decode_ms",   t_decode_us/1e3},
        {"n_max",       params.speculative.draft.n_max},
        {"n_rounds",    n_rounds},
        {"n_drafted",   n_drafted},
        {"n_accepted",  n_accepted},
        {"accepted_at", positions},
        {"draft_ms",    t_draft_us/1e3},
    };

    const std::string text = stats.dump(2) + "\n";
    if (path == "-") {
        fputs(text.c_str(), stdout);
        return true;
    }
    FILE * file = ggml_fopen(path.c_str(), "w"); // the path is UTF-8, on Windows too
    bool ok = file != nullptr && fputs(text.c_str(), file) >= 0;
    ok = file != nullptr && fclose(file) == 0 && ok;
    if (!ok) {
        LOG_ERR("%s: cannot write the statistics to '%s'\n", program, path.c_str());
    }
    return ok;
}
