#pragma once

// Drafting with Gemma 4's MTP heads: all steps in one graph, as deep as pays, with the target's noise where it samples.
// Stands in for the step-by-step loop of common/speculative.cpp.

#include "common.h"
#include "mtp-depth.h"
#include "speculative.h"

#include <memory>
#include <vector>

struct common_sampler;

// a drafted token and the candidates it was chosen from
struct common_mtp_drafted {
    llama_token              token;
    std::vector<llama_token> ids;
    std::vector<float>       probs;
};

// decode `batch`, one token a sequence with its hidden row, in a context with drafts in one graph (llama_mtp_set_draft)
// [entry of batch][position]; empty if the decode failed or was no draft
std::vector<std::vector<common_mtp_drafted>> common_mtp_decode(llama_context * ctx_dft, common_batch & batch, int32_t n_steps);

// the drafter's next draft of a sequence draws as the target's sampler will (common/coupled-sampling.h); with another sampler,
// or none, it takes the most probable tokens
void common_mtp_draw_as(llama_context * ctx_dft, llama_seq_id seq_id, const common_sampler * smpl, int32_t n_steps);

class common_mtp_drafter {
public:
    // null where the step-by-step loop has to do: when that was asked for, or for drafters other than Gemma 4's.
    // Every sequence of ctx_dft must have a backend sampler, see llama_mtp_set_draft.
    static std::unique_ptr<common_mtp_drafter> create(const common_params_speculative_draft & params, uint32_t n_seq);

    // the sampler of the sequence's target, until it begins a new text
    void set_sampler(llama_seq_id seq_id, const common_sampler * smpl) { samplers[seq_id] = smpl; }

    // for each sequence that is drafting, fill in the draft
    // hidden: the target's hidden row that goes with the last token of a sequence
    void draft(std::vector<common_speculative_draft_params> & dparams, const std::vector<std::vector<float>> & hidden);

    // whether the steps do follow each other on a device; where they do not, the loop is as good
    bool is_in_one_piece() const { return in_one_piece; }

    void print_stats() const;

    void begin(llama_seq_id seq_id) { samplers[seq_id] = nullptr; if (depth) { depth->begin(seq_id); } }
    void processed(int32_t n_tokens) { if (depth) { depth->processed(n_tokens); } }
    void accepted(llama_seq_id seq_id, int32_t n_accepted) { if (depth) { depth->accepted(seq_id, n_accepted); } }

private:
    common_mtp_drafter(const common_params_speculative_draft & params, uint32_t n_seq);

    void look_at_splits(int32_t n_steps);

    const common_params_speculative_draft params;

    std::unique_ptr<common_mtp_depth> depth; // null: always n_max

    common_batch batch;

    std::vector<const common_sampler *> samplers; // [seq]

    bool in_one_piece = true;
    bool was_looked_at = false;
};
