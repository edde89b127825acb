#include "mtp-tree.h"

#include "log.h"
#include "mtp-draft.h"
#include "mtp-stats.h"
#include "sampling.h"
#include "speculative.h"

#include "llama-mtp.h"

#include "../../src/llama-ext.h" // nextn rows

#include <algorithm>
#include <vector>

namespace {

struct node {
    llama_token               token;
    int                       parent;  // -1: the root
    int                       depth;   // 0: the root
    std::vector<llama_seq_id> seqs;    // sequences whose path goes through here
};

// trunk and leaves of a draft; node i is entry i of the verify batch
std::vector<node> build_tree(llama_token root, const std::vector<common_mtp_drafted> & trunk, int n_seq, float p_split) {
    struct leaf { llama_token token; int depth; double p; };

    std::vector<leaf> leaves;
    double p_trunk = 1.0;
    for (size_t k = 0; k < trunk.size(); ++k) {
        double p_next = 0.0;
        for (size_t c = 0; c < trunk[k].ids.size(); ++c) {
            if (trunk[k].ids[c] == trunk[k].token) {
                p_next = trunk[k].probs[c];
            } else if (trunk[k].probs[c] > p_split) {
                leaves.push_back({ trunk[k].ids[c], (int) k + 1, p_trunk*trunk[k].probs[c] });
            }
        }
        p_trunk *= p_next;
    }
    std::sort(leaves.begin(), leaves.end(), [](const leaf & a, const leaf & b) { return a.p > b.p; });
    leaves.resize(std::min<size_t>(leaves.size(), n_seq - 1));

    std::vector<node> tree = { { root, -1, 0, { 0 } } };
    for (size_t k = 0; k < trunk.size(); ++k) {
        tree.push_back({ trunk[k].token, (int) k, (int) k + 1, { 0 } });
    }
    for (size_t i = 0; i < leaves.size(); ++i) {
        const llama_seq_id seq_id = i + 1;
        for (int d = 0; d < leaves[i].depth; ++d) {
            tree[d].seqs.push_back(seq_id);
        }
        tree.push_back({ leaves[i].token, leaves[i].depth - 1, leaves[i].depth, { seq_id } });
    }
    return tree;
}

} // namespace

bool mtp_tree_wanted(const common_params & params) {
    const auto & types = params.speculative.types;
    return std::find(types.begin(), types.end(), COMMON_SPECULATIVE_TYPE_DRAFT_MTP) != types.end();
}

static int draft_in_trees(common_params & params) {
    const int   n_seq   = std::max(1, params.n_parallel);
    const int   n_draft = std::min(params.speculative.draft.n_max, LLAMA_MTP_DRAFT_STEPS_MAX);
    const float p_split = params.speculative.draft.p_split;

    if (n_draft < 1) {
        LOG_ERR("%s: --spec-draft-n-max is %d: a tree needs 1 token at least\n", __func__, n_draft);
        return 1;
    }

    params.kv_unified            = true; // a node belongs to several sequences
    params.n_outputs_max         = n_draft + n_seq;
    params.n_outputs_max_per_seq = n_draft + 1;

    llama_backend_init();
    llama_numa_init(params.numa);

    auto init_tgt = common_init_from_params(params);
    llama_model   * model = init_tgt->model();
    llama_context * ctx   = init_tgt->context();
    if (ctx == nullptr) {
        return 1;
    }

    // makes room for the drafts, see llama_mtp_set_draft; the context below refers to it
    llama_sampler_ptr room(llama_sampler_chain_init(llama_sampler_chain_default_params()));

    common_params params_dft = common_base_params_to_speculative(params);
    auto init_dft = common_speculative_init_from_params(params_dft, model, ctx);
    llama_context * ctx_dft = init_dft->context();
    if (ctx_dft == nullptr || !llama_mtp_set_draft(ctx_dft, n_draft)) {
        LOG_ERR("%s: no MTP drafter that can draft in one graph\n", __func__);
        return 1;
    }
    // one ubatch: a later one could overwrite cells of the window that are needed where drafts are rejected
    if (n_draft + n_seq > (int32_t) llama_n_ubatch(ctx)) {
        LOG_ERR("%s: a tree has up to %d tokens, which is more than the ubatch (%u): use a larger -ub and -b, or fewer drafts\n",
                __func__, n_draft + n_seq, llama_n_ubatch(ctx));
        return 1;
    }
    llama_set_embeddings_nextn(ctx, true, /*masked*/ false);

    llama_sampler_chain_add(room.get(), llama_sampler_init_top_k(1));
    if (!llama_set_sampler(ctx_dft, 0, room.get())) {
        LOG_ERR("%s: the drafter's backend cannot choose tokens\n", __func__);
        return 1;
    }

    const llama_vocab * vocab = llama_model_get_vocab(model);
    const llama_tokens  inp   = common_tokenize(ctx, params.prompt, true, true);
    if (inp.size() < 2 || inp.size() > llama_n_batch(ctx) || inp.size() + n_draft + 2 > llama_n_ctx(ctx)) {
        LOG_ERR("%s: a prompt of %zu tokens: needs 2 at least, and to fit the batch (%u) and the context (%u)\n",
                __func__, inp.size(), llama_n_batch(ctx), llama_n_ctx(ctx));
        return 1;
    }

    LOG("\n\n");
    for (const llama_token token : inp) {
        LOG("%s", common_token_to_piece(ctx, token).c_str());
    }

    common_mtp_stats   stats;
    common_sampler_ptr smpl(common_sampler_init(model, params.sampling));
    auto *             mem = llama_get_memory(ctx);

    const size_t       n_embd = llama_model_n_embd_out(model);
    std::vector<float> hidden(n_embd); // the target's row that goes with the last token
    const auto take_hidden = [&](int i) {
        const float * row = llama_get_embeddings_nextn_ith(ctx, i);
        hidden.assign(row, row + n_embd);
    };

    common_batch batch(ctx);
    common_batch batch_dft(ctx_dft);

    const int64_t t_start = ggml_time_us();
    for (size_t i = 0; i + 1 < inp.size(); ++i) {
        batch.add(inp[i], i, 0, false);
    }
    if (llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
        LOG_ERR("%s: the prompt could not be processed\n", __func__);
        return 1;
    }
    take_hidden(batch.size() - 1);

    llama_token id_last = inp.back();
    int         n_past  = inp.size() - 1;
    bool        done    = false;

    const int64_t t_decode = ggml_time_us();

    while (!done && n_past + n_draft + 2 <= (int) llama_n_ctx(ctx)) {
        const int64_t t_draft = ggml_time_us();
        batch_dft.clear();
        batch_dft.set_embd(batch_dft.add(id_last, n_past, 0, true), { hidden.data(), 1, n_embd });
        common_mtp_draw_as(ctx_dft, 0, smpl.get(), n_draft);
        const auto drafts = common_mtp_decode(ctx_dft, batch_dft, n_draft);
        if (drafts.empty()) {
            return 1;
        }
        stats.t_draft_us += ggml_time_us() - t_draft;

        const auto tree = build_tree(id_last, drafts[0], n_seq, p_split);

        batch.clear();
        for (const llama_seq_id seq_id : tree[0].seqs) {
            if (seq_id != 0) {
                llama_memory_seq_cp(mem, 0, seq_id, -1, -1);
            }
        }
        for (const auto & n : tree) {
            batch.add(n.token, n_past + n.depth, n.seqs, true);
        }
        if (llama_process(ctx, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
            LOG_ERR("%s: %zu nodes could not be verified\n", __func__, tree.size());
            return 1;
        }

        // walk down as long as the target samples a token that was drafted
        int at = 0;
        while (true) {
            id_last = common_sampler_sample(smpl.get(), ctx, at);
            common_sampler_accept(smpl.get(), id_last, true);
            stats.n_predict++;
            done = llama_vocab_is_eog(vocab, id_last) || (params.n_predict >= 0 && stats.n_predict >= params.n_predict);
            if (!llama_vocab_is_eog(vocab, id_last)) {
                LOG("%s", common_token_to_piece(ctx, id_last).c_str());
            }

            const auto child = std::find_if(tree.begin(), tree.end(), [&](const node & n) { return n.parent == at && n.token == id_last; });
            if (done || child == tree.end()) {
                break;
            }
            at = child - tree.begin();
        }
        take_hidden(at);
        stats.verified(tree.size() - 1, tree[at].depth);

        // the path taken becomes the only sequence
        const llama_seq_id keep = tree[at].seqs[0];
        n_past += tree[at].depth + 1;
        llama_memory_seq_rm  (mem, keep, n_past, -1);
        llama_memory_seq_keep(mem, keep);
        if (keep != 0) {
            llama_memory_seq_cp  (mem, keep, 0, -1, -1);
            llama_memory_seq_keep(mem, 0);
        }
    }

    stats.n_input     = inp.size();
    stats.t_encode_us = t_decode - t_start;
    stats.t_decode_us = ggml_time_us() - t_decode;

    LOG("\n\n");
    LOG_INF("decoded %4d tokens in %8.3f seconds, speed: %8.3f t/s\n", stats.n_predict, stats.t_decode_us/1e6, stats.n_predict/(stats.t_decode_us/1e6));
    LOG_INF("\n");
    LOG_INF("n_draft   = %d\n", n_draft);
    LOG_INF("n_predict = %d\n", stats.n_predict);
    LOG_INF("n_drafted = %d\n", stats.n_drafted);
    LOG_INF("n_accept  = %d\n", stats.n_accepted);
    LOG_INF("rounds    = %d\n", stats.n_rounds);

    llama_set_sampler(ctx_dft, 0, nullptr);

    const bool written = stats.write(params, "llama-speculative");
    return written ? 0 : 1;
}

int mtp_tree(common_params & params) {
    const int ret = draft_in_trees(params);
    common_log_flush(common_log_main()); // the logger's thread dies with main and would take the last lines along
    return ret;
}
