#include "mtp-draft.h"

#include "log.h"
#include "sampling.h"

#include "../src/llama-ext.h" // llama_get_ctx_other
#include "llama-mtp.h"

#include <algorithm>
#include <cstring>

std::unique_ptr<common_mtp_drafter> common_mtp_drafter::create(const common_params_speculative_draft & params, uint32_t n_seq) {
    // the position stays the same through a draft where the drafter reads the target's memory: only then is a chain right
    const bool possible = params.mtp.one_graph && llama_get_ctx_other(params.ctx_dft) == params.ctx_tgt &&
        llama_mtp_set_draft(params.ctx_dft, params.n_max);

    return std::unique_ptr<common_mtp_drafter>(possible ? new common_mtp_drafter(params, n_seq) : nullptr);
}

// a cache that is not divides the context among the sequences
static bool has_unified_cache(const llama_context * ctx) {
    return llama_n_ctx_seq(ctx) == llama_n_ctx(ctx);
}

common_mtp_drafter::common_mtp_drafter(const common_params_speculative_draft & params, uint32_t n_seq) :
        params(params),
        depth(params.mtp.auto_depth ? new common_mtp_depth(n_seq, params.n_max, !has_unified_cache(params.ctx_tgt)) : nullptr),
        batch(params.ctx_dft),
        sequences(n_seq) {
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

        for (int32_t k = 0; k < n_steps; ++k) {
            const llama_token * from = ids + n_steps + k*n_top;
            const float       * p    = probs + k*n_top;
            result[i].push_back({ ids[k], { from, from + n_top }, { p, p + n_top } });
        }
    }

    return result;
}

void common_mtp_drafter::set_sampling(llama_seq_id seq_id, const common_params_sampling & sampling, uint32_t seed) {
    // the probabilities that a constrained sampler shows are not those that it draws from
    const bool possible = params.mtp.rejection && common_grammar_value(sampling.grammar).empty();

    auto & sequence = sequences[seq_id];
    sequence.temp = possible ? std::max(0.0f, sampling.temp) : 0.0f;
    sequence.rng.seed(seed + 1);
    llama_mtp_set_draft_sampling(params.ctx_dft, seq_id, sequence.temp, seed);
}

void common_mtp_drafter::draft(std::vector<common_speculative_draft_params> & dparams, const std::vector<std::vector<float>> & hidden) {
    std::vector<llama_seq_id> seqs;
    std::vector<int32_t>      n_draft;

    for (size_t i = 0; i < dparams.size(); ++i) {
        if (dparams[i].drafting) {
            seqs.push_back(i);
            n_draft.push_back(dparams[i].n_max >= 0 ? std::min(dparams[i].n_max, params.n_max) : params.n_max);
            sequences[i].sampled.clear();
        }
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
        }

        auto drafts = common_mtp_decode(params.ctx_dft, batch, n_steps);
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
            if (sequences[seqs[i]].temp > 0.0f) {
                sequences[seqs[i]].sampled = std::move(drafts[i]);
            }
        }
    }

    if (depth) {
        const auto n_keep = depth->cut(seqs, confidence, n_steps, ggml_time_us() - t_start);
        for (size_t i = 0; i < seqs.size(); ++i) {
            dparams[seqs[i]].result->resize(n_keep[i]);
        }
    }
    for (const auto seq_id : seqs) {
        auto & result = *dparams[seq_id].result;
        if ((int32_t) result.size() < params.n_min) {
            result.clear();
        }
    }
}

void common_mtp_drafter::print_stats() const {
    if (depth) {
        LOG_INF("%s: auto depth: %s\n", __func__, depth->summary().c_str());
    }
}

// p - q where that is positive, as weights. Both are lists of tokens with probabilities.
static llama_token sample_residual(const llama_token_data_array * p, const common_mtp_drafted & q, std::mt19937 & rng) {
    std::vector<double> weights(p->size);
    double sum = 0.0;
    for (size_t i = 0; i < p->size; ++i) {
        const auto at = std::find(q.ids.begin(), q.ids.end(), p->data[i].id);
        const float q_i = at == q.ids.end() ? 0.0f : q.probs[at - q.ids.begin()];
        weights[i] = std::max(0.0, (double) p->data[i].p - q_i);
        sum += weights[i];
    }
    if (sum <= 0.0) { // p = q up to rounding: nothing is left to favour
        for (size_t i = 0; i < p->size; ++i) {
            weights[i] = p->data[i].p;
        }
    }
    return p->data[std::discrete_distribution<size_t>(weights.begin(), weights.end())(rng)].id;
}

// whether the sampler ends in a draw from the probabilities it shows
static bool draws_from_candidates(common_sampler * smpl) {
    llama_sampler * chain = common_sampler_get(smpl);
    const int n = llama_sampler_chain_n(chain);
    return n > 0 && strcmp(llama_sampler_name(llama_sampler_chain_get(chain, n - 1)), "dist") == 0;
}

std::vector<llama_token> common_mtp_drafter::sample_and_accept(llama_seq_id seq_id, common_sampler * smpl, llama_context * ctx,
        const std::vector<int> & idxs, const llama_tokens & draft) {
    const auto & q   = sequences[seq_id].sampled;
    auto       & rng = sequences[seq_id].rng;
    if (q.size() < draft.size() || !draws_from_candidates(smpl)) {
        return common_sampler_sample_and_accept_n(smpl, ctx, idxs, draft);
    }

    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));
    std::uniform_real_distribution<double> uniform(0.0, 1.0);
    std::vector<llama_token> result;

    for (size_t i = 0; i < draft.size(); ++i) {
        common_sampler_sample(smpl, ctx, idxs[i]);
        const auto * p = common_sampler_get_candidates(smpl, false);

        const llama_token_data * p_x = std::find_if(p->data, p->data + p->size, [&](const llama_token_data & c) { return c.id == draft[i]; });
        const auto   q_x   = std::find(q[i].ids.begin(), q[i].ids.end(), draft[i]) - q[i].ids.begin();

        const bool stands = p_x != p->data + p->size && uniform(rng)*q[i].probs[q_x] < p_x->p;
        const llama_token id = stands ? draft[i] : sample_residual(p, q[i], rng);

        common_sampler_accept(smpl, id, true);
        result.push_back(id);

        // as for matched drafts: nothing behind the end of generation stays in the context
        if (!stands || (llama_vocab_is_eog(vocab, id) && i + 1 < draft.size())) {
            return result;
        }
    }

    const llama_token id = common_sampler_sample(smpl, ctx, idxs[draft.size()]);
    common_sampler_accept(smpl, id, true);
    result.push_back(id);

    return result;
}
