#include "mtp-draft.h"

#include "coupled-sampling.h"
#include "log.h"
#include "sampling.h"

#include "../src/llama-ext.h" // llama_get_ctx_other
#include "llama-mtp.h"

#include <algorithm>

// splits of a graph for each step of a draft, above which the steps run as well one by one
static const int32_t MAX_SPLITS_OF_A_STEP = 4;

static common_params_speculative_draft with_possible_depth(common_params_speculative_draft params) {
    params.n_max = std::min(params.n_max, LLAMA_MTP_DRAFT_STEPS_MAX);
    params.n_min = std::min(params.n_min, params.n_max);
    return params;
}

std::unique_ptr<common_mtp_drafter> common_mtp_drafter::create(const common_params_speculative_draft & params, uint32_t n_seq) {
    // the position stays the same through a draft where the drafter reads the target's memory: only then is a chain right
    const auto possible = with_possible_depth(params);
    const bool is_chain = params.mtp.one_graph && llama_get_ctx_other(params.ctx_dft) == params.ctx_tgt &&
        llama_mtp_set_draft(params.ctx_dft, possible.n_max);

    return std::unique_ptr<common_mtp_drafter>(is_chain ? new common_mtp_drafter(possible, n_seq) : nullptr);
}

// a cache that is not divides the context among the sequences
static bool has_unified_cache(const llama_context * ctx) {
    return llama_n_ctx_seq(ctx) == llama_n_ctx(ctx);
}

common_mtp_drafter::common_mtp_drafter(const common_params_speculative_draft & params, uint32_t n_seq) :
        params(params),
        depth(params.mtp.auto_depth ? new common_mtp_depth(n_seq, params.n_min, params.n_max, !has_unified_cache(params.ctx_tgt)) : nullptr),
        batch(params.ctx_dft),
        samplers(n_seq, nullptr) {
}

std::vector<std::vector<common_mtp_drafted>> common_mtp_decode(llama_context * ctx_dft, common_batch & batch, int32_t n_steps) {
    llama_mtp_set_draft(ctx_dft, n_steps);
    const int32_t ret = llama_process(ctx_dft, LLAMA_PROCESS_TYPE_DECODE, batch.get());
    if (ret != 0) {
        LOG_ERR("%s: drafting %d tokens for %d sequences failed: %d\n", __func__, n_steps, batch.size(), ret);
        return {};
    }

    std::vector<std::vector<common_mtp_drafted>> result(batch.size());
    for (int32_t i = 0; i < batch.size(); ++i) {
        const llama_token * ids   = llama_get_sampled_candidates_ith(ctx_dft, i);
        const float       * probs = llama_get_sampled_probs_ith(ctx_dft, i);
        const int32_t       n_top = llama_get_sampled_probs_count_ith(ctx_dft, i)/n_steps;
        if (n_top < 1 || (int32_t) llama_get_sampled_candidates_count_ith(ctx_dft, i) != n_steps + n_top*n_steps) {
            LOG_ERR("%s: the context's result is not a draft of %d tokens\n", __func__, n_steps);
            return {};
        }

        for (int32_t k = 0; k < n_steps; ++k) {
            const llama_token * from = ids + n_steps + k*n_top;
            const float       * p    = probs + k*n_top;
            result[i].push_back({ ids[k], { from, from + n_top }, { p, p + n_top } });
        }
    }

    return result;
}

void common_mtp_draw_as(llama_context * ctx_dft, llama_seq_id seq_id, const common_sampler * smpl, int32_t n_steps) {
    common_coupled_draw draw;
    if (smpl == nullptr || !common_coupled_next(common_sampler_get(smpl), draw) || !(draw.temp > 0.0f)) {
        llama_mtp_set_draft_noise(ctx_dft, seq_id, 0.0f, nullptr, 0);
        return;
    }
    std::vector<float> noise((size_t) n_steps*LLAMA_MTP_DRAFT_BUCKETS);
    for (int32_t k = 0; k < n_steps; ++k) {
        common_coupled_noise(draw.seed, draw.position + k, noise.data() + (size_t) k*LLAMA_MTP_DRAFT_BUCKETS);
    }
    llama_mtp_set_draft_noise(ctx_dft, seq_id, draw.temp, noise.data(), n_steps);
}

void common_mtp_drafter::draft(std::vector<common_speculative_draft_params> & dparams, const std::vector<std::vector<float>> & hidden) {
    std::vector<llama_seq_id> seqs;
    std::vector<int32_t>      n_draft;

    for (size_t i = 0; i < dparams.size(); ++i) {
        if (dparams[i].drafting) {
            seqs.push_back(i);
            n_draft.push_back(dparams[i].n_max >= 0 ? std::min(dparams[i].n_max, params.n_max) : params.n_max);
        }
    }
    if (seqs.empty()) {
        return;
    }
    if (depth) {
        depth->next_round();
        n_draft = depth->plan(seqs, n_draft);
    }

    const int32_t n_steps = *std::max_element(n_draft.begin(), n_draft.end());
    const int64_t t_start = ggml_time_us();

    std::vector<std::vector<float>> confidence(seqs.size()); // in the favourite of each position

    if (n_steps > 0) {
        batch.clear();
        for (const auto seq_id : seqs) {
            const auto & dp = dparams[seq_id];

            const int32_t idx = batch.add(dp.id_last, dp.pos0, seq_id, true);
            batch.set_embd(idx, { hidden[seq_id].data(), 1, hidden[seq_id].size() });
            common_mtp_draw_as(params.ctx_dft, seq_id, samplers[seq_id], n_steps);
        }

        auto drafts = common_mtp_decode(params.ctx_dft, batch, n_steps);
        if (!drafts.empty()) {
            look_at_splits(n_steps);
        }
        for (size_t i = 0; i < drafts.size(); ++i) {
            const auto & dp = dparams[seqs[i]];

            drafts[i].resize(n_draft[i]);
            for (const auto & drafted : drafts[i]) {
                const float top = *std::max_element(drafted.probs.begin(), drafted.probs.end());
                if (top < params.p_min) {
                    break;
                }
                confidence[i].push_back(top);
                dp.result->push_back(drafted.token);
            }
            if ((int32_t) dp.result->size() < params.n_min) {
                dp.result->clear();
                confidence[i].clear();
            }
        }
    }

    if (depth) {
        const auto n_keep = depth->cut(seqs, confidence, n_steps, ggml_time_us() - t_start);
        for (size_t i = 0; i < seqs.size(); ++i) {
            dparams[seqs[i]].result->resize(n_keep[i]);
        }
    }
}

void common_mtp_drafter::look_at_splits(int32_t n_steps) {
    if (was_looked_at) {
        return;
    }
    was_looked_at = true;

    const int32_t n_splits = llama_mtp_draft_n_splits(params.ctx_dft);
    LOG_INF("%s: %d tokens are drafted in one graph of %d splits\n", __func__, n_steps, n_splits);
    if (n_splits > MAX_SPLITS_OF_A_STEP*n_steps) {
        LOG_WRN("%s: the device lacks operations of the drafts: their steps run one by one\n", __func__);
        in_one_piece = false;
        llama_mtp_set_draft(params.ctx_dft, 0);
    }
}

void common_mtp_drafter::print_stats() const {
    if (depth) {
        LOG_INF("%s: auto depth: %s\n", __func__, depth->summary().c_str());
    }
}
