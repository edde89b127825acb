#include "models.h"

#include "llama-context.h"
#include "llama-mtp-draft.h"
#include "llama-mtp.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

// argmax(logits/t + Gumbel noise) is a sample of softmax(logits/t); without noise it is the most probable token
class llama_mtp_draft_input : public llm_graph_input_i {
public:
    explicit llama_mtp_draft_input(const std::shared_ptr<llama_mtp_draft> & draft) : n_steps(draft->n_steps), draft(draft) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (noise == nullptr) {
            return;
        }

        const int64_t n_top     = noise->ne[0];
        const int64_t n_outputs = noise->ne[1];

        std::vector<float> t(n_outputs, 1.0f);
        std::vector<float> g(n_top*n_outputs*n_steps, 0.0f);

        std::uniform_real_distribution<double> uniform(std::numeric_limits<double>::min(), 1.0);

        for (int64_t i = 0; i < n_outputs; ++i) {
            const auto it = draft->samplings.find(ubatch->seq_id[i][0]);
            if (it == draft->samplings.end()) {
                continue;
            }
            auto & sampling = it->second;
            t[i] = 1.0f/sampling.temp;
            for (int64_t s = 0; s < n_steps; ++s) {
                float * row = g.data() + (s*n_outputs + i)*n_top;
                std::generate(row, row + n_top, [&]() { return -std::log(-std::log(uniform(sampling.rng))); });
            }
        }

        ggml_backend_tensor_set(inv_temp, t.data(), 0, ggml_nbytes(inv_temp));
        ggml_backend_tensor_set(noise,    g.data(), 0, ggml_nbytes(noise));
    }

    bool can_reuse(const llm_graph_params & params) override {
        return n_steps == params.cparams.mtp_draft->n_steps;
    }

    ggml_tensor * inv_temp = nullptr; // F32 [1, n_outputs]
    ggml_tensor * noise    = nullptr; // F32 [n_top, n_outputs, n_steps]

    const int32_t n_steps; // of the graph that this input belongs to

private:
    std::shared_ptr<llama_mtp_draft> draft;
};

// Whether the device that holds `table` can take rows from it.
static bool can_take_rows(ggml_backend_dev_t dev, const ggml_tensor * table) {
    ggml_init_params params = { 4*ggml_tensor_overhead(), nullptr, true };
    ggml_context_ptr ctx(ggml_init(params));

    ggml_tensor * rows = ggml_dup_tensor(ctx.get(), table);
    rows->buffer = table->buffer;

    return ggml_backend_dev_supports_op(dev, ggml_get_rows(ctx.get(), rows, ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, 1)));
}

// The input layer stays with the CPU even where the model does not; a tied head is the same table on the device.
static ggml_tensor * embedding_rows(const llama_model & target) {
    ggml_tensor * rows = target.tok_embd;
    ggml_tensor * head = target.output;

    const bool on_device = head != nullptr && head != rows && strcmp(head->name, rows->name) == 0 &&
        head->buffer != nullptr && !ggml_backend_buffer_is_host(head->buffer);

    return on_device && can_take_rows(target.dev_output(), head) ? head : rows;
}

llama_mtp_draft_chain::llama_mtp_draft_chain(const llm_graph_context & graph, const llama_model & drafter, const llama_model & target) :
        embd_rows(target.tok_embd), graph(graph), drafter(drafter) {
    // there for a single step too: the input tells whether the graph can be used again
    auto input = std::make_unique<llama_mtp_draft_input>(graph.cparams.mtp_draft);

    // a draft starts from every token of its batch
    if (input->n_steps > 0 && graph.n_outputs == graph.n_tokens) {
        const auto & head = static_cast<const llama_model_gemma4_assistant &>(drafter).ordered_head;
        const int64_t n_scores = head ? head.top_k*(head.rows->ne[1]/head.centroids->ne[1]) : drafter.output->ne[1];
        const int64_t n_top    = std::min<int64_t>(LLAMA_MTP_DRAFT_TOP_K, n_scores);

        n_steps   = input->n_steps;
        embd_rows = embedding_rows(target);

        input->inv_temp = ggml_new_tensor_2d(graph.ctx0, GGML_TYPE_F32, 1, graph.n_outputs);
        input->noise    = ggml_new_tensor_3d(graph.ctx0, GGML_TYPE_F32, n_top, graph.n_outputs, n_steps);
        ggml_set_input(input->inv_temp);
        ggml_set_input(input->noise);
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
    const int64_t n_top    = inp->noise->ne[0];

    // take elements at [k, n_out] from [n, n_out], as rows of one element
    auto pick = [&](ggml_tensor * from, int64_t n, ggml_tensor * at, int64_t k) {
        return ggml_reshape_2d(ctx, ggml_get_rows(ctx, ggml_reshape_3d(ctx, from, 1, n, n_out), ggml_reshape_2d(ctx, at, k, n_out)), k, n_out);
    };
    auto append = [&](ggml_tensor * & to, ggml_tensor * part) {
        to = to ? ggml_concat(ctx, to, part, 0) : part;
    };

    ggml_tensor * top    = ggml_top_k(ctx, scores.values, n_top);
    ggml_tensor * ids    = scores.ids ? pick(scores.ids, n_scores, top, n_top) : top;
    ggml_tensor * logits = ggml_mul(ctx, pick(scores.values, n_scores, top, n_top), inp->inv_temp);
    ggml_tensor * noise  = ggml_view_2d(ctx, inp->noise, n_top, n_out, inp->noise->nb[1], n_built*inp->noise->nb[2]);
    ggml_tensor * token  = pick(ids, n_top, ggml_argmax(ctx, ggml_add(ctx, logits, noise)), 1);

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
    if (ctx->get_model().arch != LLM_ARCH_GEMMA4_ASSISTANT || n_steps < 0) {
        return false;
    }
    ctx->set_mtp_draft(n_steps);
    return true;
}

void llama_mtp_set_draft_sampling(llama_context * ctx, llama_seq_id seq_id, float temp, uint32_t seed) {
    auto & samplings = ctx->get_cparams().mtp_draft->samplings;
    if (temp > 0.0f) {
        samplings[seq_id] = { temp, std::mt19937(seed) };
    } else {
        samplings.erase(seq_id);
    }
}
