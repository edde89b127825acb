#include "llama-mtp-family.h"

#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-model-loader.h"

#include "gguf.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>
#include <vector>

static const llama_mtp_family FAMILIES[] = {
    // arch              mark                spec_type       n_layer experts
    { "gemma4-assistant", nullptr,            "draft-mtp",    0,      false },
    { "eagle3",           nullptr,            "draft-eagle3", 1,      false },
    { "dflash",           "markov_w1.weight", "draft-dspark", 0,      false },
    { "dflash",           nullptr,            "draft-dflash", 0,      false },
    { "gemma4",           nullptr,            "draft-simple", 0,      true  },
    { "gemma3",           nullptr,            "draft-simple", 0,      false },
    { "llama",            nullptr,            "draft-simple", 0,      true  },
};

const llama_mtp_family * llama_mtp_find_family(const std::string & arch, const std::function<bool(const char *)> & has_tensor) {
    for (const auto & family : FAMILIES) {
        if (arch == family.arch && (family.mark == nullptr || has_tensor(family.mark))) {
            return &family;
        }
    }
    return nullptr;
}

std::string llama_mtp_known_archs() {
    std::string list;
    for (const auto & family : FAMILIES) {
        if (list.find(std::string("'") + family.arch + "'") == std::string::npos) {
            list += std::string(list.empty() ? "'" : ", '") + family.arch + "'";
        }
    }
    return list;
}

namespace {

// typed access to the keys of one architecture; what is of another type is left to the loader, which says so
struct mtp_keys {
    const gguf_context * meta;
    const std::string    arch;

    int64_t find(const char * name, gguf_type type) const {
        const int64_t id = gguf_find_key(meta, (arch + "." + name).c_str());
        return id >= 0 && gguf_get_kv_type(meta, id) == type ? id : -1;
    }

    bool exists(const char * name) const {
        return gguf_find_key(meta, (arch + "." + name).c_str()) >= 0;
    }

    void refuse(const char * name, const std::string & found, const std::string & expected) const {
        throw std::runtime_error(format("key %s.%s of the MTP heads is %s, expected %s", arch.c_str(), name, found.c_str(), expected.c_str()));
    }

    uint32_t range(const char * name, uint32_t least, uint32_t most) const {
        const int64_t id = find(name, GGUF_TYPE_UINT32);
        if (id < 0) {
            return 0;
        }
        const uint32_t value = gguf_get_val_u32(meta, id);
        if (value < least || value > most) {
            refuse(name, std::to_string(value), std::to_string(least) + " to " + std::to_string(most));
        }
        return value;
    }

    void absent(const char * name) const {
        if (exists(name)) {
            refuse(name, "there", "none");
        }
    }

    // a number, or one for each layer, all of them at least 1
    void positive(const char * name) const {
        const int64_t id = find(name, GGUF_TYPE_ARRAY);
        if (id < 0) {
            if (!exists(name)) {
                refuse(name, "missing", "1 or more");
            }
            range(name, 1, INT_MAX);
            return;
        }
        const gguf_type type = gguf_get_arr_type(meta, id);
        if (type != GGUF_TYPE_INT32 && type != GGUF_TYPE_UINT32) {
            return;
        }
        const auto * values = (const int32_t *) gguf_get_arr_data(meta, id);
        if (std::any_of(values, values + gguf_get_arr_n(meta, id), [](int32_t value) { return value < 1; })) {
            refuse(name, "0 or less in a layer", "1 or more");
        }
    }
};

void check_experts(const mtp_keys & keys, const llama_mtp_family & family) {
    const uint32_t n_expert = keys.range("expert_count", 0, family.experts ? LLAMA_MAX_EXPERTS : 0);
    if (n_expert > 0 && keys.find("expert_used_count", GGUF_TYPE_UINT32) < 0) {
        keys.refuse("expert_used_count", "missing or no u32", "1 or more");
    }
    if (n_expert == 0 && keys.find("expert_used_count", GGUF_TYPE_ARRAY) >= 0) {
        keys.refuse("expert_used_count", "an array", "0");
    }
    keys.range("expert_used_count", n_expert > 0 ? 1 : 0, n_expert);
    keys.range("expert_group_count", 0, 0);
}

void check_values(const mtp_keys & keys, const llama_mtp_family & family) {
    const uint32_t n_layer = keys.range("block_count", std::max(1u, family.n_layer), family.n_layer ? family.n_layer : LLAMA_MAX_LAYERS);
    check_experts(keys, family);

    int64_t id = keys.find("attention.layer_norm_rms_epsilon", GGUF_TYPE_FLOAT32);
    if (id >= 0 && !(gguf_get_val_f32(keys.meta, id) >= 0.0f)) {
        keys.refuse("attention.layer_norm_rms_epsilon", format("%g", gguf_get_val_f32(keys.meta, id)), "0 or more");
    }
    id = keys.find("rope.scaling.type", GGUF_TYPE_STRING);
    if (id >= 0) {
        const std::string type = gguf_get_val_str(keys.meta, id);
        const auto known = { "none", "linear", "yarn", "longrope" };
        if (std::find(known.begin(), known.end(), type) == known.end()) {
            keys.refuse("rope.scaling.type", "'" + type + "'", "none, linear, yarn or longrope");
        }
    }

    if (std::strcmp(family.spec_type, "draft-mtp") == 0) {
        if (n_layer > 0) {
            keys.range("nextn_predict_layers", n_layer, n_layer);
        }
        return; // the rest is the target's, which it is held against
    }
    keys.range("nextn_predict_layers", 0, 0);
    keys.range("context_length", 1, INT_MAX);
    keys.range("attention.sliding_window", 0, INT_MAX);
    keys.range("hyper_connection.count", 0, 0);
    keys.range("embedding_length", 1, INT_MAX);
    keys.positive("attention.head_count");
    keys.absent("embedding_length_out");
    keys.absent("pooling_type");
    if (keys.arch != "dflash") { // which sets it for each of its passes
        keys.absent("attention.causal");
    }
}

// the kernels take any type that a tensor says it has, and end the program where they have none for it
void check_types(const llama_model_loader & ml) {
    for (const auto & it : ml.weights_map) {
        const ggml_tensor * tensor = it.second.tensor;
        const ggml_type type = tensor->type;
        const std::string & name = it.first;
        if (ggml_nelements(tensor) == 0) {
            throw std::runtime_error(format("tensor '%s' of the MTP heads is empty", name.c_str()));
        }
        if (name == "masked_embd_ordering") {
            continue; // looked at where it is loaded
        }
        if (name == "d2t") {
            if (type != GGML_TYPE_I64 || ggml_n_dims(tensor) != 1) {
                throw std::runtime_error(format("tensor 'd2t' of the MTP heads: type is %s, expected i64 in one dimension", ggml_type_name(type)));
            }
            continue;
        }
        // rows of a matrix, which may be a single one, or values that are added and multiplied
        const bool is_table  = name.find("_conv_base") != std::string::npos;
        const bool is_matrix = !is_table && (ggml_n_dims(tensor) > 1 || name == "conf_proj.weight");
        const bool is_float  = type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
        const bool is_stored = ggml_is_quantized(type) && type != GGML_TYPE_Q8_1 && type != GGML_TYPE_Q8_K; // those are for activations
        if (!(is_matrix ? is_float || is_stored : type == GGML_TYPE_F32)) {
            throw std::runtime_error(format("tensor '%s' of the MTP heads: type is %s, expected %s", name.c_str(),
                        ggml_type_name(type), is_matrix ? "floats or a quantized type" : "f32"));
        }
    }
}

// The target's token for each one that is drafted: an index into its logits, in every draft.
void check_d2t(llama_model_loader & ml) {
    const auto it = ml.weights_map.find("d2t");
    const int64_t id = gguf_find_key(ml.metadata, "tokenizer.ggml.tokens");
    if (it == ml.weights_map.end() || id < 0 || gguf_get_kv_type(ml.metadata, id) != GGUF_TYPE_ARRAY) {
        return;
    }
    const auto & weight   = it->second;
    const int64_t n_vocab = gguf_get_arr_n(ml.metadata, id);
    const int64_t n_draft = weight.tensor->ne[0];
    if (n_draft > n_vocab) {
        throw std::runtime_error(format("tensor 'd2t' of the MTP heads has %lld entries, expected up to %lld", (long long) n_draft, (long long) n_vocab));
    }

    std::vector<int64_t> tokens(n_draft);
    auto & file = ml.files.at(weight.idx);
    file->seek(weight.offs, SEEK_SET);
    file->read_raw(tokens.data(), tokens.size()*sizeof(tokens[0]));
    for (int64_t i = 0; i < n_draft; ++i) {
        if (tokens[i] < 0 || tokens[i] >= n_vocab) {
            throw std::runtime_error(format("tensor 'd2t' of the MTP heads: entry %lld is %lld, expected 0 to %lld",
                        (long long) i, (long long) tokens[i], (long long) n_vocab - 1));
        }
    }
}

} // namespace

void llama_mtp_check_drafter(llama_model_loader & ml) {
    const auto * family = llama_mtp_find_family(ml.arch_name, [&](const char * name) { return ml.weights_map.count(name) > 0; });
    if (family == nullptr) {
        throw std::runtime_error(format("the MTP heads have the architecture '%s', expected %s", ml.arch_name.c_str(), llama_mtp_known_archs().c_str()));
    }
    check_values({ ml.metadata, ml.arch_name }, *family);
    check_types(ml);
    check_d2t(ml);
}
