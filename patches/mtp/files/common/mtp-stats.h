#pragma once

// What a speculative loop did, for programs to print the same JSON.

#include "common.h"

#include <cstdint>
#include <string>
#include <vector>

struct common_mtp_stats {
    int32_t n_input   = 0;
    int64_t t_encode_us = 0;

    int32_t n_predict = 0; // tokens generated
    int64_t t_decode_us = 0;

    int32_t n_rounds   = 0; // target passes
    int32_t n_drafted  = 0; // draft tokens verified
    int32_t n_accepted = 0; // of these, tokens that stood
    std::vector<int32_t> accepted_at; // [position], of all rounds

    int64_t t_draft_us = 0;

    // a target pass verified `n_draft` tokens, of which `n_accept` stood
    void verified(size_t n_draft, size_t n_accept);

    // writes JSON to params.speculative.draft.mtp.stats_path, "-" for the standard output, if it is set
    bool write(const common_params & params, const char * program) const;
};
