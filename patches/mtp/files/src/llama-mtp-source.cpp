#include "llama-mtp-source.h"

#include "llama-model-loader.h"
#include "llama-mtp-family.h"
#include "llama-mtp.h"

#include "ggml-cpp.h"
#include "gguf.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

const char * const MTP_PREFIX      = "mtp.";
const char * const MTP_KEY_VERSION = "mtp.format.version";
const char * const MTP_KEY_MASK    = "mtp.tokenizer.ggml.mask_token_id";

const uint32_t MTP_FORMAT_VERSION = 1;

// under "mtp." but not used with the drafter: about the merged file, the drafter's own tokenizer (the base's serves
// for both), or the alignment of a file that the drafter is not in
const char * const MTP_FILE_KEYS[] = {
    "mtp.format.", "mtp.source.", "mtp.target.", "mtp.tokenizer.", "mtp.general.alignment",
};

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

// "" where there is no such key
std::string mtp_get_string(const gguf_context * meta, const std::string & key) {
    const int64_t id = gguf_find_key(meta, key.c_str());
    return id >= 0 && gguf_get_kv_type(meta, id) == GGUF_TYPE_STRING ? gguf_get_val_str(meta, id) : "";
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

using mtp_file = std::unique_ptr<FILE, int (*)(FILE *)>;

// paths are UTF-8, on Windows too; nullptr where the file cannot be read
mtp_file mtp_open(const std::string & path) {
    return { ggml_fopen(path.c_str(), "rb"), fclose };
}

bool mtp_seek(FILE * file, int64_t offset, int whence) {
#ifdef _WIN32
    return _fseeki64(file, offset, whence) == 0;
#else
    return fseeko(file, offset, whence) == 0;
#endif
}

// -1 where it is not known
int64_t mtp_size(FILE * file) {
    if (!mtp_seek(file, 0, SEEK_END)) {
        return -1;
    }
#ifdef _WIN32
    return _ftelli64(file);
#else
    return ftello(file);
#endif
}

bool mtp_read_at(FILE * file, int64_t offset, void * data, size_t n) {
    return mtp_seek(file, offset, SEEK_SET) && fread(data, 1, n, file) == n;
}

// Reads a file in large pieces, and skips what nobody asks for.
struct mtp_reader {
    FILE * file;

    std::vector<char> piece = std::vector<char>(1 << 18);
    size_t begin = 0;
    size_t end   = 0;

    bool read(void * data, size_t n) {
        char * dst = (char *) data;
        while (n > 0) {
            if (begin == end) {
                begin = 0;
                end   = fread(piece.data(), 1, piece.size(), file);
                if (end == 0) {
                    return false;
                }
            }
            const size_t here = std::min(n, end - begin);
            std::memcpy(dst, piece.data() + begin, here);
            begin += here;
            dst   += here;
            n     -= here;
        }
        return true;
    }

    template <typename T> bool read(T & value) { return read(&value, sizeof(value)); }

    bool skip(uint64_t n) {
        const size_t here = std::min<uint64_t>(n, end - begin);
        begin += here;
        n     -= here;
        return n == 0 || (n <= INT64_MAX && mtp_seek(file, (int64_t) n, SEEK_CUR));
    }
};

// bytes of a value, 0 where they differ from one to the next
uint64_t mtp_value_size(uint32_t type) {
    switch (type) {
        case GGUF_TYPE_UINT8:  case GGUF_TYPE_INT8:  case GGUF_TYPE_BOOL:    return 1;
        case GGUF_TYPE_UINT16: case GGUF_TYPE_INT16:                         return 2;
        case GGUF_TYPE_UINT32: case GGUF_TYPE_INT32: case GGUF_TYPE_FLOAT32: return 4;
        case GGUF_TYPE_UINT64: case GGUF_TYPE_INT64: case GGUF_TYPE_FLOAT64: return 8;
        default:                                                             return 0;
    }
}

// Whether a GGUF has a key, without reading its header into memory, which takes a tenth of a second for the vocabulary
// of Gemma. False for what is not a GGUF; a header that is inconsistent is left to the loader, which says so.
bool mtp_file_has_key(const std::string & path, const std::string & key) {
    const mtp_file file = mtp_open(path);
    if (!file) {
        return false;
    }
    mtp_reader in { file.get() };

    char     magic[4];
    uint32_t version;
    uint64_t n_tensors, n_kv;
    if (!in.read(magic) || std::memcmp(magic, GGUF_MAGIC, sizeof(magic)) != 0 ||
        !in.read(version) || !in.read(n_tensors) || !in.read(n_kv)) {
        return false;
    }
    std::string name;
    for (uint64_t i = 0; i < n_kv; ++i) {
        uint64_t size;
        uint32_t type;
        if (!in.read(size)) {
            return false;
        }
        name.resize(size == key.size() ? size : 0);
        if (!(name.empty() ? in.skip(size) : in.read(&name[0], size)) || !in.read(type)) {
            return false;
        }
        if (name == key) {
            return true;
        }
        uint64_t n = 1;
        if (type == GGUF_TYPE_ARRAY && (!in.read(type) || !in.read(n))) {
            return false;
        }
        const uint64_t value = mtp_value_size(type);
        if (value > 0 ? n > UINT64_MAX/value || !in.skip(n*value) : type != GGUF_TYPE_STRING) {
            return false;
        }
        for (uint64_t k = 0; value == 0 && k < n; ++k) {
            if (!in.read(size) || !in.skip(size)) {
                return false;
            }
        }
    }
    return false;
}

// The tail layout: a base, a complete drafter GGUF, and a footer at the very end of the file, little-endian:
// magic[8], base_bytes u64, heads_offset u64, heads_bytes u64, sha256[32], version u32, crc32 u32 of all before.
// The sha256 is for gguf-mtp: reading all of the heads twice would make loading slower.
const size_t MTP_FOOTER_SIZE = 72;
const size_t MTP_FOOTER_CRC  = MTP_FOOTER_SIZE - sizeof(uint32_t);

const char * const MTP_FOOTER_MAGIC = "GGUF-MTP";

const uint64_t MTP_PAGE = 4096;

uint64_t mtp_little_endian(const uint8_t * bytes, size_t n) {
    uint64_t value = 0;
    for (size_t i = 0; i < n; ++i) {
        value |= (uint64_t) bytes[i] << 8*i;
    }
    return value;
}

uint32_t mtp_crc32(const void * data, size_t n) {
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < n; ++i) {
        crc ^= ((const uint8_t *) data)[i];
        for (int bit = 0; bit < 8; ++bit) {
            crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
        }
    }
    return ~crc;
}

// where the drafter lies in a file of the tail layout; nothing of any other file
struct mtp_window {
    uint64_t begin = 0;
    uint64_t end   = 0;
};

mtp_window mtp_find_tail(const std::string & path) {
    const mtp_file file = mtp_open(path);
    const int64_t  size = file ? mtp_size(file.get()) : -1;
    uint8_t footer[MTP_FOOTER_SIZE];
    if (size < (int64_t) sizeof(footer) || !mtp_read_at(file.get(), size - sizeof(footer), footer, sizeof(footer)) ||
        std::memcmp(footer, MTP_FOOTER_MAGIC, std::strlen(MTP_FOOTER_MAGIC)) != 0) {
        return {};
    }
    const uint64_t base_bytes   = mtp_little_endian(footer + 8,  8);
    const uint64_t heads_offset = mtp_little_endian(footer + 16, 8);
    const uint64_t heads_bytes  = mtp_little_endian(footer + 24, 8);
    const uint64_t version      = mtp_little_endian(footer + 64, 4);
    const uint64_t crc32        = mtp_little_endian(footer + MTP_FOOTER_CRC, 4);

    auto require = [&](bool ok, const char * what) {
        if (!ok) {
            throw std::runtime_error(format("%s: the footer of its MTP heads is damaged: %s", path.c_str(), what));
        }
    };
    const uint64_t room = (uint64_t) size - sizeof(footer);
    require(crc32 == mtp_crc32(footer, MTP_FOOTER_CRC), "wrong checksum");
    require(version == MTP_FORMAT_VERSION, "another version, which needs other MTP patches");
    require(heads_offset <= room && heads_bytes == room - heads_offset, "the heads do not end where it begins");
    require(heads_offset % MTP_PAGE == 0 && base_bytes <= heads_offset && heads_offset - base_bytes < MTP_PAGE,
            "the heads do not begin at the page behind the base");

    std::vector<char> padding(heads_offset - base_bytes);
    require(mtp_read_at(file.get(), base_bytes, padding.data(), padding.size()) &&
            std::all_of(padding.begin(), padding.end(), [](char c) { return c == 0; }), "the padding before the heads is not zero");

    return { heads_offset, room };
}

void mtp_forget_tensors(llama_model_loader & ml) {
    ml.weights_map.clear();
    ml.n_elements = 0;
    ml.n_bytes    = 0;
}

void mtp_add_tensor(llama_model_loader & ml, const llama_model_loader::llama_tensor_weight & weight) {
    ml.n_elements += ggml_nelements(weight.tensor);
    ml.n_bytes    += ggml_nbytes(weight.tensor);
    ml.weights_map.emplace(ggml_get_name(weight.tensor), weight);
}

// the GGUF header at an offset of a file, nullptr where there is none
gguf_context * mtp_read_meta(const char * path, uint64_t offset, ggml_context ** ctx) {
    const mtp_file file = mtp_open(path);
    return file && mtp_seek(file.get(), offset, SEEK_SET) ? gguf_init_from_file_ptr(file.get(), { /*.no_alloc =*/ true, /*.ctx =*/ ctx }) : nullptr;
}

// whether a tensor is in a file, or in one of the parts of which that is the first
bool mtp_has_tensor(const std::string & path, const gguf_context * meta, const std::string & name) {
    if (gguf_find_tensor(meta, name.c_str()) >= 0) {
        return true;
    }
    const int64_t id = gguf_find_key(meta, "split.count");
    const int n_parts = id >= 0 && gguf_get_kv_type(meta, id) == GGUF_TYPE_UINT16 ? gguf_get_val_u16(meta, id) : 1;

    std::vector<char> prefix(path.size() + 64), part(path.size() + 64);
    if (n_parts < 2 || llama_split_prefix(prefix.data(), prefix.size(), path.c_str(), 0, n_parts) <= 0) {
        return false;
    }
    for (int i = 1; i < n_parts; ++i) {
        llama_split_path(part.data(), part.size(), prefix.data(), i, n_parts);
        const gguf_context_ptr other { mtp_read_meta(part.data(), 0, nullptr) };
        if (!other) {
            return false; // loading the model will say so
        }
        if (gguf_find_tensor(other.get(), name.c_str()) >= 0) {
            return true;
        }
    }
    return false;
}

// let the loader see the drafter of the tail instead of the base
void mtp_load_tail(llama_model_loader & ml, const std::string & path, const mtp_window & window) {
    ggml_context * ctx = nullptr;
    gguf_context_ptr meta { mtp_read_meta(path.c_str(), window.begin, &ctx) };
    if (!meta) {
        throw std::runtime_error(format("%s: the MTP heads at offset %llu cannot be read", path.c_str(), (unsigned long long) window.begin));
    }

    mtp_forget_tensors(ml);
    ml.files.clear();
    ml.contexts.clear();

    ml.files.emplace_back(new llama_file(path.c_str(), "rb", ml.use_direct_io));
    ml.contexts.emplace_back(ctx);
    for (ggml_tensor * cur = ggml_get_first_tensor(ctx); cur; cur = ggml_get_next_tensor(ctx, cur)) {
        const llama_model_loader::llama_tensor_weight weight(ml.files.back().get(), 0, meta.get(), cur);
        if (weight.offs + ggml_nbytes(cur) > window.end) {
            throw std::runtime_error(format("%s: tensor '%s' of the MTP heads ends behind them", path.c_str(), ggml_get_name(cur)));
        }
        mtp_add_tensor(ml, weight);
    }
    ml.metadata_ptr = std::move(meta);
}

// from here on the loader's metadata are the drafter's
void mtp_use_drafter(llama_model_loader & ml) {
    ml.metadata = ml.metadata_ptr.get();
    ml.arch_name = mtp_get_string(ml.metadata, "general.architecture");
    ml.llm_kv = LLM_KV(llm_arch_from_string(ml.arch_name));
    llama_mtp_check_drafter(ml);
    gguf_set_val_bool(ml.metadata, LLAMA_MTP_KEY_EMBEDDED, true);

    // the base has mapped this file already: mapping it again would prefetch all of it for a few percent
    ml.use_mmap = false;
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

// the drafter's metadata as a file of its own would carry it, with the base's tokenizer
gguf_context_ptr mtp_drafter_metadata(const gguf_context * meta) {
    gguf_context_ptr res { gguf_init_empty() };

    for (int64_t id = 0; id < gguf_get_n_kv(meta); ++id) {
        const char * key = gguf_get_key(meta, id);
        if (mtp_has_prefix(key, "tokenizer.")) {
            mtp_copy_key(res.get(), key, meta, id);
        } else if (mtp_is_drafter_key(key)) {
            if (key[std::strlen(MTP_PREFIX)] == 0) {
                throw std::runtime_error(format("key '%s' of the MTP heads has no name", key));
            }
            mtp_copy_key(res.get(), key + std::strlen(MTP_PREFIX), meta, id);
        }
    }

    // a drafter that fills in masked tokens was trained with its own mask token
    const int64_t id_mask = gguf_find_key(meta, MTP_KEY_MASK);
    if (id_mask >= 0) {
        mtp_copy_key(res.get(), MTP_KEY_MASK + std::strlen(MTP_PREFIX), meta, id_mask);
    }
    return res;
}

} // namespace

llama_mtp_source::llama_mtp_source(const std::string & name) : path(name) {
    auto cut = [&](const std::string & mark, part_t p) {
        if (name.size() > mark.size() && name.compare(name.size() - mark.size(), mark.size(), mark) == 0) {
            path.resize(name.size() - mark.size());
            part = p;
        }
    };
    cut(whole(""), WHOLE);
    if (part != WHOLE && !mtp_open(name)) {
        cut(LLAMA_MTP_FRAGMENT_DRAFTER, DRAFTER);
    }
}

std::string llama_mtp_source::whole(const std::string & path) {
    return path + '\0';
}

void llama_mtp_source::narrow(llama_model_loader & ml) const {
    if (!mtp_is_merged(ml.metadata)) {
        if (part == DRAFTER) {
            const mtp_window tail = mtp_find_tail(path);
            if (tail.end == 0) {
                throw std::runtime_error(format("%s carries no MTP heads (no key %s)", path.c_str(), MTP_KEY_VERSION));
            }
            mtp_load_tail(ml, path, tail);
            mtp_use_drafter(ml);
        }
        if (part == WHOLE && mtp_find_tail(path).end != 0) {
            throw std::runtime_error(format("%s: the MTP heads appended to it would be lost; take them off with `gguf-mtp detach`, "
                        "or merge with `gguf-mtp convert --layout inline`", path.c_str()));
        }
        return;
    }
    if (part == WHOLE) {
        return;
    }

    const auto all = std::move(ml.weights_map);
    mtp_forget_tensors(ml);
    for (const auto & it : all) {
        const bool of_drafter = mtp_has_prefix(it.first, MTP_PREFIX);
        if (of_drafter != (part == DRAFTER)) {
            continue;
        }
        if (of_drafter) {
            ggml_set_name(it.second.tensor, it.first.substr(std::strlen(MTP_PREFIX)).c_str());
        }
        mtp_add_tensor(ml, it.second);
    }

    if (part == DRAFTER) {
        ml.metadata_ptr = mtp_drafter_metadata(ml.metadata);
        mtp_use_drafter(ml);
    }
}

const char * llama_mtp_file_spec_type(const char * path_model) {
    const char * const unreadable = "draft-mtp"; // loading what is in the file will say what is wrong

    const std::string path = llama_mtp_source(path_model).path;
    mtp_window tail;
    try {
        tail = mtp_find_tail(path);
    } catch (const std::exception &) {
        return unreadable;
    }
    const bool is_tail = tail.end > 0;
    if (!is_tail && !mtp_file_has_key(path, MTP_KEY_VERSION)) {
        return nullptr;
    }
    const gguf_context_ptr meta { mtp_read_meta(path.c_str(), tail.begin, nullptr) };
    if (!meta) {
        return is_tail ? unreadable : nullptr;
    }

    const std::string prefix = is_tail ? "" : MTP_PREFIX;
    const auto * family = llama_mtp_find_family(mtp_get_string(meta.get(), prefix + "general.architecture"),
            [&](const char * name) { return mtp_has_tensor(path, meta.get(), prefix + name); });
    return family ? family->spec_type : unreadable;
}

bool llama_mtp_file_has_heads(const char * path_model) {
    return llama_mtp_file_spec_type(path_model) != nullptr;
}

struct llama_model * llama_model_load_mtp_from_file(const char * path_model, struct llama_model_params params) {
    const std::string name = std::string(path_model) + LLAMA_MTP_FRAGMENT_DRAFTER;
    return llama_model_load_from_file(name.c_str(), params);
}
