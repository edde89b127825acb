#include "models.h"

#include "llama-model-loader.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

namespace {

// fallback where a file has the head's tensors but not this key: the value of Google's E2B and E4B checkpoints
const uint32_t ORDERED_HEAD_TOP_K = 32;

// outputs in one mul_mat_id: from 32 on, Metal's takes a path that has no room for so many experts
const int64_t MUL_MAT_ID_ROWS = 31;

// the key's place in the file; -1 where it is not there
int64_t find_key(const gguf_context * meta, const char * key, gguf_type type) {
    const int64_t id = gguf_find_key(meta, key);
    if (id >= 0 && gguf_get_kv_type(meta, id) != type) {
        throw std::runtime_error(format("key %s: type is %s, expected %s", key,
                    gguf_type_name(gguf_get_kv_type(meta, id)), gguf_type_name(type)));
    }
    return id;
}

uint32_t ordered_head_top_k(const gguf_context * meta) {
    const int64_t id = find_key(meta, "gemma4-assistant.masked_embd.top_k", GGUF_TYPE_UINT32);
    return id >= 0 ? gguf_get_val_u32(meta, id) : ORDERED_HEAD_TOP_K;
}

bool ordered_head_rows_sorted(const gguf_context * meta) {
    const int64_t id = find_key(meta, "gemma4-assistant.masked_embd.rows_sorted", GGUF_TYPE_BOOL);
    return id >= 0 && gguf_get_val_bool(meta, id);
}

// Each entry is an index into rows and logits, in every draft: they are looked at once, here.
void check_ordering(llama_model_loader & ml, int64_t n_vocab) {
    const auto & weight = ml.require_weight("masked_embd_ordering");
    if (weight.tensor->type != GGML_TYPE_I32) {
        throw std::runtime_error(format("masked_embd_ordering: type is %s, expected i32", ggml_type_name(weight.tensor->type)));
    }
    if (ml.files.empty()) {
        return; // the application supplies the tensors' data
    }

    std::vector<int32_t> ids(n_vocab);
    auto & file = ml.files.at(weight.idx);
    file->seek(weight.offs, SEEK_SET);
    file->read_raw(ids.data(), ids.size()*sizeof(ids[0]));

    std::vector<bool> seen(n_vocab);
    for (int64_t i = 0; i < n_vocab; ++i) {
        if (ids[i] < 0 || ids[i] >= n_vocab || seen[ids[i]]) {
            throw std::runtime_error(format("masked_embd_ordering: entry %lld is %d, expected every token from 0 to %lld once",
                        (long long) i, ids[i], (long long) n_vocab - 1));
        }
        seen[ids[i]] = true;
    }
}

} // namespace

bool llama_model_gemma4_assistant::load_ordered_head() {
    LLAMA_LOAD_LOCALS;

    const ggml_tensor * meta = ml->get_tensor_meta("masked_embd_centroids.weight");
    if (meta == nullptr) {
        if (ml->get_tensor_meta("masked_embd_ordering") != nullptr || ordered_head_rows_sorted(ml->metadata)) {
            throw std::runtime_error("Gemma 4 assistant has a part of an ordered head: masked_embd_centroids.weight is missing");
        }
        return false;
    }

    const int64_t n_centroids = meta->ne[1];
    const int64_t top_k       = ordered_head_top_k(ml->metadata);
    if (n_centroids < 1 || n_vocab % n_centroids != 0 || top_k < 1 || top_k > n_centroids) {
        throw std::runtime_error(format("Gemma 4 assistant's ordered head does not fit: %d centroids, top_k %d, %d tokens",
                    (int) n_centroids, (int) top_k, (int) n_vocab));
    }

    auto & head = ordered_head;
    head.top_k       = top_k;
    head.rows_sorted = ordered_head_rows_sorted(ml->metadata);
    head.centroids   = create_tensor(tn(LLM_TENSOR_MASKED_EMBD_CENTROIDS, "weight"), { n_embd, n_centroids }, 0);
    head.ordering    = create_tensor(tn(LLM_TENSOR_MASKED_EMBD_ORDERING),            { n_vocab }, 0);
    // sorted rows are multiplied by id, unsorted ones are gathered: each needs a buffer whose backend can do that
    head.rows        = create_tensor(tn(head.rows_sorted ? LLM_TENSOR_MASKED_EMBD_ROWS : LLM_TENSOR_MASKED_EMBD_TABLE, "weight"),
                                     { n_embd, n_vocab }, 0);
    check_ordering(*ml, n_vocab);

    tok_embd = head.rows;
    output   = head.rows;

    return true;
}

llama_mtp_ordered_head::scores llama_mtp_ordered_head::build_scores(ggml_context * ctx, ggml_tensor * cur) const {
    const int64_t n_embd      = rows->ne[0];
    const int64_t n_vocab     = rows->ne[1];
    const int64_t n_centroids = centroids->ne[1];
    const int64_t n_per       = n_vocab/n_centroids;
    const int64_t n_out       = cur->ne[1];
    const int64_t n_sel       = n_per*top_k;

    ggml_tensor * top = ggml_top_k(ctx, ggml_mul_mat(ctx, centroids, cur), top_k); // [top_k, n_out]

    // token ids of the chosen centroids: [n_per, top_k*n_out]
    ggml_tensor * by_centroid = ggml_reshape_2d(ctx, ordering, n_per, n_centroids);
    ggml_tensor * ids = ggml_get_rows(ctx, by_centroid, ggml_reshape_1d(ctx, top, top_k*n_out));

    ggml_tensor * sel; // n_sel scores for each output, in the order of ids
    if (rows_sorted) {
        // a centroid's rows stand together, like an expert's: multiply them in place
        ggml_tensor * experts = ggml_reshape_3d(ctx, rows, n_embd, n_per, n_centroids);
        sel = nullptr;
        for (int64_t i = 0; i < n_out; i += MUL_MAT_ID_ROWS) {
            const int64_t n = std::min(n_out - i, MUL_MAT_ID_ROWS);
            ggml_tensor * b   = ggml_view_3d(ctx, cur, n_embd, 1, n, cur->nb[1], cur->nb[1], i*cur->nb[1]);
            ggml_tensor * ids = ggml_view_2d(ctx, top, top_k, n, top->nb[1], i*top->nb[1]);
            ggml_tensor * out = ggml_mul_mat_id(ctx, experts, b, ids);
            sel = sel ? ggml_concat(ctx, sel, out, 2) : out;
        }
    } else {
        ggml_tensor * gathered = ggml_get_rows(ctx, rows, ggml_reshape_1d(ctx, ids, n_sel*n_out));
        sel = ggml_mul_mat(ctx, ggml_reshape_3d(ctx, gathered, n_embd, n_sel, n_out), ggml_reshape_3d(ctx, cur, n_embd, 1, n_out));
    }

    return { ggml_reshape_2d(ctx, sel, n_sel, n_out), ggml_reshape_2d(ctx, ids, n_sel, n_out) };
}

ggml_tensor * llama_mtp_ordered_head::build_logits(ggml_context * ctx, ggml_tensor * cur) const {
    if (cur->ne[1] == 0) {
        return ggml_mul_mat(ctx, rows, cur); // an empty result, which set_rows has no path for
    }

    const auto    chosen  = build_scores(ctx, cur);
    const int64_t n_vocab = rows->ne[1];
    const int64_t n_sel   = chosen.ids->ne[0];
    const int64_t n_out   = chosen.ids->ne[1];

    ggml_tensor * logits = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 1, n_vocab, n_out);
    logits = ggml_fill(ctx, logits, -INFINITY);
    logits = ggml_set_rows(ctx, logits, ggml_reshape_3d(ctx, chosen.values, 1, n_sel, n_out), chosen.ids);

    return ggml_reshape_2d(ctx, logits, n_vocab, n_out);
}
