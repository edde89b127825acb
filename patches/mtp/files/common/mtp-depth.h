#pragma once

// Chooses how many tokens to draft and how many of them to verify, so that speculation pays: the expected number of
// tokens of a round over its cost. Costs are measured by the width of the verify batch, as they need not even rise
// with it. Acceptance is measured by sequence and draft position, and by the drafter's confidence.

#include "llama.h"

#include <cstdint>
#include <string>
#include <vector>

class common_mtp_depth {
public:
    // `even`: sequences verify equally many tokens where they can. Without a unified KV cache the target decodes a batch
    // in which one sequence has more tokens than another in several passes, each of which reads the weights.
    // A draft has n_min to n_max tokens, or none.
    common_mtp_depth(uint32_t n_seq, int32_t n_min, int32_t n_max, bool even);

    // a round starts and ends with this: the cost of a round is the time from its drafts to here
    void next_round();

    // a sequence starts a new text: the time until the next round is no round's cost
    void begin(llama_seq_id seq_id);

    // the target has processed a batch
    void processed(int32_t n_tokens) { width_seen += n_tokens; }

    // how many tokens to draft for each of `seqs`, which may have up to `n_most` each
    std::vector<int32_t> plan(const std::vector<llama_seq_id> & seqs, const std::vector<int32_t> & n_most);

    // How many tokens of each draft to verify, given the probability of the drafter's favourite at each position.
    // `t_draft_us` is the time it took to draft `n_steps` positions.
    std::vector<int32_t> cut(const std::vector<llama_seq_id> & seqs, const std::vector<std::vector<float>> & confidence,
            int32_t n_steps, int64_t t_draft_us);

    // of the tokens of a sequence that were verified, the first `n_accepted` stood
    void accepted(llama_seq_id seq_id, int32_t n_accepted);

    // what was chosen and why, for a log
    std::string summary() const;

private:
    struct mean {
        double value  = 0.0;
        double weight = 0.0;

        // `horizon`: the number of samples after which one is as good as forgotten
        void add(double sample, double horizon);

        // the mean, with what is expected counted in as so many samples
        double or_expected(double expected, double n_samples) const;
    };

    struct measured : mean {
        int64_t round = 0; // of the last measurement
    };

    const int32_t n_min;
    const int32_t n_max;
    const bool    even;

    std::vector<measured> costs;   // [width]
    std::vector<int32_t>  n_plain; // [number of sequences], rounds planned without drafts to measure their cost
    mean                  step;  // a position of a draft

    std::vector<std::vector<mean>> by_position;     // [seq][position]: acceptance, given that all before stood
    std::vector<mean>              by_position_all; // the same, over all sequences
    std::vector<mean>              by_confidence;   // the same, by the drafter's probability of its favourite

    std::vector<std::vector<float>> verifying; // [seq], confidence of each token that is being verified

    std::vector<int64_t> chosen; // [number of tokens verified], drafts

    int64_t round         = 0;
    int64_t t_planned_us  = 0;
    int32_t width_planned = 0; // 0: the current round is not measured
    int32_t width_seen    = 0;

    // which of `n` sequences get a further token together
    std::vector<std::vector<size_t>> groups(size_t n) const;

    double estimate_us(int32_t width) const;
    double acceptance(llama_seq_id seq_id, size_t position) const;
    double acceptance(llama_seq_id seq_id, size_t position, float confidence) const;
};
