#include "llama-mtp-source.h"

#include "llama-model-loader.h"
#include "llama-mtp.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <cstring>
#include <fstream>
#include <stdexcept>
#include <vector>

namespace {

const char * const MTP_PREFIX      = "mtp.";
const char * const MTP_KEY_VERSION = "mtp.format.version";
const char * const MTP_KEY_SHARED  = "mtp.tokenizer.shared";

const uint32_t MTP_FORMAT_VERSION = 1;

// under "mtp." but about the merged file, not keys of the drafter
const char * const MTP_FILE_KEYS[] = { "mtp.format.", "mtp.source.", "mtp.target.", MTP_KEY_SHARED, "mtp.tokenizer.positions" };

bool mtp_has_prefix(const std::string & s, const char * prefix) {
    return s.compare(0, std::strlen(prefix), prefix) == 0;
}

bool mtp_is_drafter_key(const std::string & key) {
    if (!mtp_has_prefix(key, MTP_PREFIX)) {
        return false;
    }
    for (const char * prefix : MTP_FILE_KEYS) {
        if (mtp_has_prefix(key, prefix)) {
            return false;
        }
    }
    return true;
}

bool mtp_is_merged(const gguf_context * meta) {
    const int64_t id = gguf_find_key(meta, MTP_KEY_VERSION);
    if (id < 0) {
        return false;
    }
    if (gguf_get_kv_type(meta, id) != GGUF_TYPE_UINT32 || gguf_get_val_u32(meta, id) != MTP_FORMAT_VERSION) {
        throw std::runtime_error(format("%s: expected u32 %u; the file needs another version of the MTP patches",
                    MTP_KEY_VERSION, MTP_FORMAT_VERSION));
    }
    return true;
}

bool mtp_tokenizer_is_shared(const gguf_context * meta) {
    const int64_t id = gguf_find_key(meta, MTP_KEY_SHARED);
    return id >= 0 && gguf_get_kv_type(meta, id) == GGUF_TYPE_BOOL && gguf_get_val_bool(meta, id);
}

void mtp_copy_key(gguf_context * dst, const char * name, const gguf_context * src, int64_t id) {
    switch (gguf_get_kv_type(src, id)) {
        case GGUF_TYPE_UINT8:   gguf_set_val_u8  (dst, name, gguf_get_val_u8  (src, id)); break;
        case GGUF_TYPE_INT8:    gguf_set_val_i8  (dst, name, gguf_get_val_i8  (src, id)); break;
        case GGUF_TYPE_UINT16:  gguf_set_val_u16 (dst, name, gguf_get_val_u16 (src, id)); break;
        case GGUF_TYPE_INT16:   gguf_set_val_i16 (dst, name, gguf_get_val_i16 (src, id)); break;
        case GGUF_TYPE_UINT32:  gguf_set_val_u32 (dst, name, gguf_get_val_u32 (src, id)); break;
        case GGUF_TYPE_INT32:   gguf_set_val_i32 (dst, name, gguf_get_val_i32 (src, id)); break;
        case GGUF_TYPE_UINT64:  gguf_set_val_u64 (dst, name, gguf_get_val_u64 (src, id)); break;
        case GGUF_TYPE_INT64:   gguf_set_val_i64 (dst, name, gguf_get_val_i64 (src, id)); break;
        case GGUF_TYPE_FLOAT32: gguf_set_val_f32 (dst, name, gguf_get_val_f32 (src, id)); break;
        case GGUF_TYPE_FLOAT64: gguf_set_val_f64 (dst, name, gguf_get_val_f64 (src, id)); break;
        case GGUF_TYPE_BOOL:    gguf_set_val_bool(dst, name, gguf_get_val_bool(src, id)); break;
        case GGUF_TYPE_STRING:  gguf_set_val_str (dst, name, gguf_get_val_str (src, id)); break;
        case GGUF_TYPE_ARRAY: {
            const size_t n = gguf_get_arr_n(src, id);
            if (gguf_get_arr_type(src, id) == GGUF_TYPE_STRING) {
                std::vector<const char *> strings(n);
                for (size_t i = 0; i < n; ++i) {
                    strings[i] = gguf_get_arr_str(src, id, i);
                }
                gguf_set_arr_str(dst, name, strings.data(), n);
            } else {
                gguf_set_arr_data(dst, name, gguf_get_arr_type(src, id), gguf_get_arr_data(src, id), n);
            }
        } break;
        default:
            throw std::runtime_error(format("key %s has a type that this build does not know", gguf_get_key(src, id)));
    }
}

// the drafter's metadata as a file of its own would carry it; the tokenizer comes from the base where it is shared
gguf_context_ptr mtp_drafter_metadata(const gguf_context * meta) {
    gguf_context_ptr res { gguf_init_empty() };

    const bool shared = mtp_tokenizer_is_shared(meta);
    for (int64_t id = 0; id < gguf_get_n_kv(meta); ++id) {
        const char * key = gguf_get_key(meta, id);
        if (mtp_is_drafter_key(key)) {
            mtp_copy_key(res.get(), key + std::strlen(MTP_PREFIX), meta, id);
        } else if (shared && mtp_has_prefix(key, "tokenizer.")) {
            mtp_copy_key(res.get(), key, meta, id);
        }
    }
    return res;
}

} // namespace

llama_mtp_source::llama_mtp_source(const std::string & name) : path(name) {
    auto cut = [&](const char * fragment, part_t p) {
        const size_t n = std::strlen(fragment);
        if (name.size() > n && name.compare(name.size() - n, n, fragment) == 0 && !std::ifstream(name).good()) {
            path.resize(name.size() - n);
            part = p;
        }
    };
    cut(LLAMA_MTP_FRAGMENT_DRAFTER, DRAFTER);
    cut(LLAMA_MTP_FRAGMENT_WHOLE,   WHOLE);
}

void llama_mtp_source::narrow(llama_model_loader & ml) const {
    if (!mtp_is_merged(ml.metadata)) {
        if (part == DRAFTER) {
            throw std::runtime_error(format("%s carries no MTP heads (no key %s)", path.c_str(), MTP_KEY_VERSION));
        }
        return;
    }
    if (part == WHOLE) {
        return;
    }

    auto all = std::move(ml.weights_map);
    ml.weights_map.clear();
    ml.n_elements = 0;
    ml.n_bytes    = 0;

    for (auto & it : all) {
        const bool of_drafter = mtp_has_prefix(it.first, MTP_PREFIX);
        if (of_drafter != (part == DRAFTER)) {
            continue;
        }
        ggml_tensor * tensor = it.second.tensor;
        const std::string name = of_drafter ? it.first.substr(std::strlen(MTP_PREFIX)) : it.first;
        ggml_set_name(tensor, name.c_str());
        ml.n_elements += ggml_nelements(tensor);
        ml.n_bytes    += ggml_nbytes(tensor);
        ml.weights_map.emplace(name, it.second);
    }

    if (part == DRAFTER) {
        ml.metadata_ptr = mtp_drafter_metadata(ml.metadata);
        ml.metadata     = ml.metadata_ptr.get();

        ml.arch_name.clear();
        const int64_t id = gguf_find_key(ml.metadata, "general.architecture");
        if (id >= 0 && gguf_get_kv_type(ml.metadata, id) == GGUF_TYPE_STRING) {
            ml.arch_name = gguf_get_val_str(ml.metadata, id);
        }
        ml.llm_kv = LLM_KV(llm_arch_from_string(ml.arch_name));

        // the base has mapped this file already: mapping it again would prefetch all of it for a few percent
        ml.use_mmap = false;
    }
}

bool llama_mtp_file_has_heads(const char * path_model) {
    const struct gguf_init_params params = { /*.no_alloc =*/ true, /*.ctx =*/ nullptr };
    const gguf_context_ptr meta { std::ifstream(path_model).good() ? gguf_init_from_file(path_model, params) : nullptr };
    return meta && gguf_find_key(meta.get(), MTP_KEY_VERSION) >= 0;
}

struct llama_model * llama_model_load_mtp_from_file(const char * path_model, struct llama_model_params params) {
    const std::string name = std::string(path_model) + LLAMA_MTP_FRAGMENT_DRAFTER;
    return llama_model_load_from_file(name.c_str(), params);
}
