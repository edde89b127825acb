#include "models.h"

#include "llama-context.h"
#include "llama-mtp-draft.h"
#include "llama-mtp.h"

#include "ggml-cpp.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

// argmax(logits/t + noise) where a sequence samples; without noise it is the most probable token
class llama_mtp_draft_input : public llm_graph_input_i {
public:
    explicit llama_mtp_draft_input(const std::shared_ptr<llama_mtp_draft> & draft) :
        n_steps(draft->n_steps), has_noise(!draft->samplings.empty()), draft(draft) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (inp_noise == nullptr) {
            return;
        }

        const int64_t n_outputs = inp_noise->ne[1];

        std::vector<float> t(n_outputs, 1.0f);
        std::vector<float> g(ggml_nelements(inp_noise), 0.0f);

        for (int64_t i = 0; i < n_outputs; ++i) {
            const auto it = draft->samplings.find(ubatch->seq_id[i][0]);
            if (it == draft->samplings.end()) {
                continue;
            }
            const auto & sampling = it->second;
            t[i] = 1.0f/sampling.temp;
            for (int64_t s = 0; s < n_steps && (s + 1)*LLAMA_MTP_DRAFT_BUCKETS <= (int64_t) sampling.noise.size(); ++s) {
                std::copy_n(sampling.noise.data() + s*LLAMA_MTP_DRAFT_BUCKETS, LLAMA_MTP_DRAFT_BUCKETS,
                        g.data() + (s*n_outputs + i)*LLAMA_MTP_DRAFT_BUCKETS);
            }
        }

        ggml_backend_tensor_set(inv_temp,  t.data(), 0, ggml_nbytes(inv_temp));
        ggml_backend_tensor_set(inp_noise, g.data(), 0, ggml_nbytes(inp_noise));
    }

    bool can_reuse(const llm_graph_params & params) override {
        const auto & now = *params.cparams.mtp_draft;
        return n_steps == now.n_steps && has_noise == !now.samplings.empty();
    }

    ggml_tensor * inv_temp  = nullptr; // F32 [1, n_outputs]
    ggml_tensor * inp_noise = nullptr; // F32 [LLAMA_MTP_DRAFT_BUCKETS, n_outputs, n_steps]

    // of the graph that this input belongs to
    const int32_t n_steps;
    const bool    has_noise;

private:
    std::shared_ptr<llama_mtp_draft> draft;
};

// Whether a backend that computes the drafter's graphs can take rows from `table` where it lies.
static bool can_take_rows(ggml_backend_sched_t sched, const ggml_tensor * table) {
    ggml_init_params params = { 4*ggml_tensor_overhead(), nullptr, true };
    ggml_context_ptr ctx(ggml_init(params));

    ggml_tensor * rows = ggml_dup_tensor(ctx.get(), table);
    rows->buffer = table->buffer;
    ggml_tensor * op = ggml_get_rows(ctx.get(), rows, ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, 1));

    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        ggml_backend_t backend = ggml_backend_sched_get_backend(sched, i);
        if (ggml_backend_supports_buft(backend, ggml_backend_buffer_get_type(table->buffer)) && ggml_backend_supports_op(backend, op)) {
            return true;
        }
    }
    return false;
}

// The input layer stays with the CPU even where the model does not; a tied head is the same table on the device.
static ggml_tensor * embedding_rows(const llama_model & target, ggml_backend_sched_t sched) {
    ggml_tensor * rows = target.tok_embd;
    ggml_tensor * head = target.output;

    const bool on_device = head != nullptr && head != rows && strcmp(head->name, rows->name) == 0 &&
        head->buffer != nullptr && !ggml_backend_buffer_is_host(head->buffer);

    return on_device && can_take_rows(sched, head) ? head : rows;
}

// tokens that share a value of the noise: I32 [n_vocab], on the device that chooses the tokens
struct llama_mtp_draft::bucket_table {
    bucket_table(int64_t n_vocab, ggml_backend_dev_t dev) {
        ggml_init_params params = { ggml_tensor_overhead(), nullptr, true };
        ctx.reset(ggml_init(params));
        tensor = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n_vocab);
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_dev_buffer_type(dev)));
        if (!buffer) {
            throw std::runtime_error("no memory on the device to draft by sampling");
        }

        std::vector<int32_t> buckets(n_vocab);
        for (int64_t id = 0; id < n_vocab; ++id) {
            buckets[id] = id % LLAMA_MTP_DRAFT_BUCKETS;
        }
        ggml_backend_tensor_set(tensor, buckets.data(), 0, ggml_nbytes(tensor));
    }

    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor *           tensor;
};

llama_mtp_draft::llama_mtp_draft() = default;
llama_mtp_draft::~llama_mtp_draft() = default;

llama_mtp_draft_chain::llama_mtp_draft_chain(const llm_graph_context & graph, const llama_model & drafter, const llama_model & target) :
        embd_rows(target.tok_embd), graph(graph), drafter(drafter) {
    // there for a single step too: the input tells whether the graph can be used again
    auto input = std::make_unique<llama_mtp_draft_input>(graph.cparams.mtp_draft);

    // a draft starts from every token of its batch
    if (input->n_steps > 0 && graph.n_outputs == graph.n_tokens) {
        n_steps   = input->n_steps;
        embd_rows = embedding_rows(target, graph.sched);

        if (input->has_noise) {
            input->inv_temp  = ggml_new_tensor_2d(graph.ctx0, GGML_TYPE_F32, 1, graph.n_outputs);
            input->inp_noise = ggml_new_tensor_3d(graph.ctx0, GGML_TYPE_F32, LLAMA_MTP_DRAFT_BUCKETS, graph.n_outputs, n_steps);
            ggml_set_input(input->inv_temp);
            ggml_set_input(input->inp_noise);
        }
    }

    inp = input.get();
    graph.res->add_input(std::move(input));
}

void llama_mtp_draft_chain::step(ggml_tensor * cur, ggml_tensor * & tokens, ggml_tensor * & hidden) {
    auto * ctx = graph.ctx0;

    const auto & head = static_cast<const llama_model_gemma4_assistant &>(drafter).ordered_head;
    const auto scores = head ? head.build_scores(ctx, cur) :
        llama_mtp_ordered_head::scores { graph.build_lora_mm(drafter.output, cur), nullptr };

    const int64_t n_scores = scores.values->ne[0];
    const int64_t n_out    = scores.values->ne[1];
    const int64_t n_top    = std::min<int64_t>(LLAMA_MTP_DRAFT_TOP_K, n_scores);

    // take elements at [k, n_out] from [n, n_out], as rows of one element
    auto pick = [&](ggml_tensor * from, int64_t n, ggml_tensor * at, int64_t k) {
        return ggml_reshape_2d(ctx, ggml_get_rows(ctx, ggml_reshape_3d(ctx, from, 1, n, n_out), ggml_reshape_2d(ctx, at, k, n_out)), k, n_out);
    };
    auto append = [&](ggml_tensor * & to, ggml_tensor * part) {
        to = to ? ggml_concat(ctx, to, part, 0) : part;
    };

    ggml_tensor * top    = ggml_top_k(ctx, scores.values, n_top);
    ggml_tensor * ids    = scores.ids ? pick(scores.ids, n_scores, top, n_top) : top;
    ggml_tensor * logits = pick(scores.values, n_scores, top, n_top);
    ggml_tensor * values = logits;
    if (inp->has_noise) {
        // few operations on a device are many launches: the buckets are looked up, not computed
        ggml_tensor * table   = ggml_reshape_2d(ctx, graph.cparams.mtp_draft->buckets->tensor, 1, drafter.vocab.n_tokens());
        ggml_tensor * buckets = ggml_get_rows(ctx, table, ggml_reshape_1d(ctx, ids, n_top*n_out));
        ggml_tensor * noise   = ggml_view_2d(ctx, inp->inp_noise, LLAMA_MTP_DRAFT_BUCKETS, n_out, inp->inp_noise->nb[1], n_built*inp->inp_noise->nb[2]);
        logits = ggml_mul(ctx, logits, inp->inv_temp);
        values = ggml_add(ctx, logits, pick(noise, LLAMA_MTP_DRAFT_BUCKETS, buckets, n_top));
    }
    // not argmax, which has no index for values that are no numbers on some devices
    ggml_tensor * token = pick(ids, n_top, ggml_top_k(ctx, values, 1), 1);

    append(chosen,     token);
    append(candidates, ids);
    append(probs,      ggml_soft_max(ctx, logits));

    tokens = ggml_reshape_1d(ctx, token, n_out);
    hidden = ggml_mul_mat(ctx, drafter.nextn_proj_post, cur);

    ++n_built;
}

bool llama_mtp_draft_chain::done() {
    if (n_built < n_steps) {
        return false;
    }
    if (n_steps == 0) {
        return true;
    }

    // delivered as backend samplers deliver theirs
    ggml_tensor * ids = ggml_concat(graph.ctx0, chosen, candidates, 0);

    for (int64_t i = 0; i < graph.n_outputs; ++i) {
        graph.res->t_candidates   .push_back(ggml_view_1d(graph.ctx0, ids,   ids->ne[0],   i*ids->nb[1]));
        graph.res->t_sampled_probs.push_back(ggml_view_1d(graph.ctx0, probs, probs->ne[0], i*probs->nb[1]));
        ggml_build_forward_expand(graph.gf, graph.res->t_candidates.back());
        ggml_build_forward_expand(graph.gf, graph.res->t_sampled_probs.back());
    }

    return true;
}

void llama_context::set_mtp_draft(int32_t n_steps) {
    auto & draft = *cparams.mtp_draft;

    draft.n_steps = n_steps;
    if (n_steps > draft.n_steps_max) {
        draft.n_steps_max  = n_steps;
        sched_need_reserve = true;
    }
}

bool llama_mtp_set_draft(llama_context * ctx, int32_t n_steps) {
    if (ctx->get_model().arch != LLM_ARCH_GEMMA4_ASSISTANT || n_steps < 0 || n_steps > LLAMA_MTP_DRAFT_STEPS_MAX) {
        return false;
    }
    ctx->set_mtp_draft(n_steps);
    return true;
}

int32_t llama_mtp_draft_n_splits(const llama_context * ctx) {
    return ggml_backend_sched_get_n_splits(ctx->get_sched());
}

void llama_mtp_set_draft_noise(llama_context * ctx, llama_seq_id seq_id, float temp, const float * noise, int32_t n_steps) {
    auto & draft = *ctx->get_cparams().mtp_draft;
    if (!(temp > 0.0f)) {
        draft.samplings.erase(seq_id);
        return;
    }
    if (!draft.buckets) {
        const auto & drafter = ctx->get_model();
        draft.buckets = std::make_unique<llama_mtp_draft::bucket_table>(drafter.vocab.n_tokens(), drafter.dev_output());
    }
    auto & sampling = draft.samplings[seq_id];
    sampling.temp = temp;
    sampling.noise.assign(noise, noise + (size_t) n_steps*LLAMA_MTP_DRAFT_BUCKETS);
}
