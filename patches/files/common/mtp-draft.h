#pragma once

// Drafting with Gemma 4's MTP heads: all steps in one graph, as deep as pays, sampled where the target samples.
// Stands in for the step-by-step loop of common/speculative.cpp.

#include "common.h"
#include "mtp-depth.h"
#include "speculative.h"

#include <memory>
#include <random>
#include <vector>

struct common_sampler;

// a drafted token and the candidates it was chosen from
struct common_mtp_drafted {
    llama_token              token;
    std::vector<llama_token> ids;
    std::vector<float>       probs;
};

// decode `batch`, one token a sequence with its hidden row, in a context with drafts in one graph (llama_mtp_set_draft)
// [entry of batch][position]; empty if the decode failed
std::vector<std::vector<common_mtp_drafted>> common_mtp_decode(llama_context * ctx_dft, common_batch & batch, int32_t n_steps);

class common_mtp_drafter {
public:
    // null where the step-by-step loop has to do: when that was asked for, or for drafters other than Gemma 4's.
    // Every sequence of ctx_dft must have a backend sampler, see llama_mtp_set_draft.
    static std::unique_ptr<common_mtp_drafter> create(const common_params_speculative_draft & params, uint32_t n_seq);

    // how the target samples the sequence from now on
    void set_sampling(llama_seq_id seq_id, const common_params_sampling & params, uint32_t seed);

    // for each sequence that is drafting, fill in the draft
    // hidden: the target's hidden row that goes with the last token of a sequence
    void draft(std::vector<common_speculative_draft_params> & dparams, const std::vector<std::vector<float>> & hidden);

    void print_stats() const;

    void begin(llama_seq_id seq_id) { if (depth) { depth->begin(seq_id); } }
    void processed(int32_t n_tokens) { if (depth) { depth->processed(n_tokens); } }
    void accepted(llama_seq_id seq_id, int32_t n_accepted) { if (depth) { depth->accepted(seq_id, n_accepted); } }

    // Sample with the target and keep the draft tokens that stand: those of a sampled draft by rejection sampling
    // (Leviathan et al. 2023, Chen et al. 2023), others if the target samples the same.
    std::vector<llama_token> sample_and_accept(llama_seq_id seq_id, common_sampler * smpl, llama_context * ctx,
            const std::vector<int> & idxs, const llama_tokens & draft);

private:
    common_mtp_drafter(const common_params_speculative_draft & params, uint32_t n_seq);

    const common_params_speculative_draft params;

    std::unique_ptr<common_mtp_depth> depth; // null: always n_max

    common_batch batch;

    struct sequence {
        float        temp = 0.0f; // above 0: drafts are sampled, and judged by rejection sampling
        std::mt19937 rng;         // for judging

        std::vector<common_mtp_drafted> sampled; // the last draft, where it was sampled
    };
    std::vector<sequence> sequences;
};
