#pragma once

// What llama-server needs to give the same answers with drafts as without: drafts use only the room that is left in a batch,
// and every accepted token has the target's probabilities.
// Templates, since the slots and their batch are private to server-context.cpp.

#include "common.h"
#include "log.h"
#include "sampling.h"
#include "speculative.h"

#include <algorithm>
#include <vector>

// number of rounds without drafts after a batch with drafts did not fit into the KV cache
static const int32_t SERVER_DRAFTS_PAUSE = 8;

// Limits the drafts so that all of them fit into one batch of n_batch tokens. Drafts left from an earlier round, which are verified
// again, are dropped if they do not fit. If a prompt is waiting, at least half of the room is left to it; otherwise it might have
// to wait until the other slots are done.
template <typename Slot>
void server_limit_drafts(common_speculative * spec, const std::vector<Slot *> & generating, const std::vector<Slot *> & drafting,
        int32_t n_batch, bool has_prompt) {
    int32_t room = std::max(n_batch - (int32_t) generating.size(), 0);
    for (auto * slot : generating) {
        if ((int32_t) slot->spec_draft.size() > room) {
            slot->cut_draft(0);
            slot->spec_is_replay = false;
        }
        room -= slot->spec_draft.size();
    }
    if (drafting.empty()) {
        return;
    }
    if (has_prompt) {
        room /= 2;
    }

    const int32_t n_max = common_speculative_n_max(spec);
    int32_t n_left = drafting.size();
    for (const auto * slot : drafting) {
        auto & params = common_speculative_get_draft_params(spec, slot->id);
        params.n_max    = std::min({ params.n_max, n_max, room/n_left });
        params.drafting = params.n_max > 0;
        room -= params.n_max;
        n_left--;
    }
}

// Cuts drafts before the first token id outside of the vocabulary. A drafter that computes NaN may return any id, and one
// invalid id would fail the whole batch.
template <typename Slot>
void server_check_drafts(const std::vector<Slot *> & drafting, int32_t n_vocab) {
    for (auto * slot : drafting) {
        const auto & draft = slot->spec_draft;
        const auto end = std::find_if(draft.begin(), draft.end(), [&](llama_token id) { return id < 0 || id >= n_vocab; });
        slot->cut_draft(end - draft.begin());
    }
}

// Whether the batch of this round holds drafts.
template <typename Slot>
bool server_has_drafts(const std::vector<Slot *> & generating) {
    return std::any_of(generating.begin(), generating.end(), [](const Slot * slot) { return !slot->spec_i_batch.empty(); });
}

// Removes the drafts from a batch that did not fit into the KV cache, which leaves the batch of a round without drafts.
// Returns false if there are none. No token from `off` on may have been decoded.
template <typename Batch, typename Slots>
bool server_drop_drafts(Batch & batch, Slots & slots, int32_t off) {
    std::vector<bool> is_draft(batch.tokens.size(), false);
    bool found = false;
    for (const auto & slot : slots) {
        if (slot.spec_i_batch.empty()) {
            continue;
        }
        if (slot.spec_i_batch.front() < off) {
            return false;
        }
        for (size_t i = 1; i < slot.spec_i_batch.size(); ++i) {
            is_draft[slot.spec_i_batch[i]] = true;
            found = true;
        }
    }
    if (!found) {
        return false;
    }

    std::vector<int32_t> moved; // [index before] index after
    int32_t n_kept = 0;
    for (size_t i = 0; i < is_draft.size(); ++i) {
        moved.push_back(n_kept);
        if (!is_draft[i]) {
            batch.tokens[n_kept++] = batch.tokens[i];
        }
    }
    batch.tokens.resize(n_kept);

    for (auto & slot : slots) {
        if (!slot.spec_i_batch.empty()) {
            slot.i_batch = moved[slot.spec_i_batch.front()];
            slot.prompt.tokens.keep_first(slot.prompt.n_tokens() - (int32_t) slot.spec_draft.size());
            if (!slot.spec_is_replay) {
                slot.stats.n_draft_tokens -= slot.spec_draft.size(); // nobody will know whether they were right
            }
            slot.cut_draft(0);
            slot.spec_i_batch.clear();
            slot.spec_is_replay = false;
        } else if (slot.i_batch >= 0 && slot.i_batch < (int32_t) moved.size()) {
            slot.i_batch = moved[slot.i_batch];
        }
    }

    return true;
}

// common_sampler_sample_and_accept_n(), but calls on_token(index in `idxs`, token) for each token while the sampler still
// holds the candidates that it was chosen from
template <typename F>
std::vector<llama_token> server_verify(common_sampler * smpl, llama_context * ctx, const std::vector<int32_t> & idxs,
        const llama_tokens & draft, F on_token) {
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));

    std::vector<llama_token> result;
    for (size_t i = 0; i < idxs.size(); ++i) {
        const llama_token id = common_sampler_sample_and_accept_n(smpl, ctx, std::vector<int>{ idxs[i] }, llama_tokens{}).front();
        result.push_back(id);
        on_token(i, id);
        // as in common_sampler_sample_and_accept_n(): nothing after the end of a text, unless that is the last of a draft
        const bool ends = llama_vocab_is_eog(vocab, id) && i + 1 < draft.size();
        if (i == draft.size() || draft[i] != id || ends) {
            break;
        }
    }
    return result;
}

// For a drafter that failed to process a batch: clears its memory of the sequences, so that it can process the next one.
// (Where it shares the target's memory, llama_memory_seq_rm() does nothing.)
inline void server_forget_drafter(llama_context * ctx_dft, const common_batch & batch) {
    llama_memory_t mem = ctx_dft ? llama_get_memory(ctx_dft) : nullptr;
    LOG_WRN("%s: the drafter could not follow the batch and starts over\n", __func__);
    if (mem == nullptr) {
        return;
    }
    for (const auto & token : batch.tokens) {
        llama_memory_seq_rm(mem, token.seq_id, -1, -1);
    }
}
