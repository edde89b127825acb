#include "llama-mtp-pair.h"

#include "llama-impl.h"
#include "llama-model.h"
#include "llama-mtp-family.h"
#include "llama-mtp.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

static void check_same(const std::string & what, int64_t target, int64_t drafter) {
    if (target != drafter) {
        throw std::runtime_error(format("the drafter is not one for this target: %s: expected %lld, found %lld",
                    what.c_str(), (long long) target, (long long) drafter));
    }
}

static void check_range(const std::string & what, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most) {
        throw std::runtime_error(format("the drafter cannot be run: %s is %lld, expected %lld to %lld",
                    what.c_str(), (long long) value, (long long) least, (long long) most));
    }
}

// the target's layer whose keys and values the heads' layers read: the rule by which the cache is shared
static int shared_layer(const llama_model & target, bool is_swa) {
    return llama_model_n_layer(&target) - (is_swa ? 2 : 1);
}

// Gemma 4's MTP heads, which share the target's key-value cache
static void check_heads(const llama_model & drafter, const llama_model & target) {
    const auto & d = drafter.hparams;
    const auto & t = target.hparams;

    check_same("hidden size",           t.n_embd,       d.n_embd_out());
    check_same("target's output width", t.n_embd_out(), d.n_embd_out());
    check_same("vocabulary size", target.vocab.n_tokens(), drafter.vocab.n_tokens());

    if (drafter.nextn_proj_pre == nullptr || !d.is_swa_any()) {
        throw std::runtime_error("the drafter has no layers, or none with a sliding window");
    }

    for (int il = 0; il < (int) d.n_layer_nextn; ++il) {
        const int  il_target = shared_layer(target, d.is_swa(il));
        const auto of_layer  = " of layer " + std::to_string(il);

        check_same("target layer" + of_layer + " exists", true, il_target >= 0);
        check_same("sliding window" + of_layer, t.is_swa(il_target),        d.is_swa(il));
        check_same("key-value heads" + of_layer, t.n_head_kv(il_target),     d.n_head_kv(il));
        check_same("key width" + of_layer,       t.n_embd_head_k(il_target), d.n_embd_head_k(il));
        check_same("value width" + of_layer,     t.n_embd_head_v(il_target), d.n_embd_head_v(il));
        check_same("rotated width" + of_layer,   t.n_rot(il_target),         d.n_rot(il));
        check_same("query heads left over" + of_layer, 0, d.n_head(il) % d.n_head_kv(il));
    }
}

// what the graphs of drafters with a key-value cache of their own assert
static void check_attention(const llama_model & drafter) {
    const auto & d = drafter.hparams;
    const int  n_layer = d.n_layer();
    const bool by_layer = drafter.arch == LLM_ARCH_GEMMA4; // others take the first layer's sizes for all

    check_range("layers with a sliding window", d.is_swa_any(), d.swa_type != LLAMA_SWA_TYPE_NONE, d.swa_type != LLAMA_SWA_TYPE_NONE);
    check_range("the sliding window", d.n_swa, d.swa_type != LLAMA_SWA_TYPE_NONE, INT32_MAX);

    for (int il = 0; il < n_layer; ++il) {
        const auto of_layer = " of layer " + std::to_string(il);
        const int64_t n_head = d.n_head(il), n_head_kv = d.n_head_kv(il), width = d.n_embd_head_k(il), n_rot = d.n_rot(il);

        check_range("query heads" + of_layer,     n_head,    1, INT32_MAX);
        check_range("key-value heads" + of_layer, n_head_kv, 1, n_head);
        check_range("query heads left over" + of_layer, n_head % n_head_kv, 0, 0);
        check_range("value width" + of_layer,   d.n_embd_head_v(il), width, width);
        check_range("rotated width" + of_layer, n_rot, 2, width);
        check_range("rotated width left over" + of_layer, n_rot % 2, 0, 0);
        if (!by_layer) {
            check_range("query heads" + of_layer,     n_head,    d.n_head(0),        d.n_head(0));
            check_range("key-value heads" + of_layer, n_head_kv, d.n_head_kv(0),     d.n_head_kv(0));
            check_range("key width" + of_layer,       width,     d.n_embd_head_k(0), d.n_embd_head_k(0));
        }
    }

    // the last layers of Gemma 4 attend to keys and values of the last two that have any, one of each kind
    if (by_layer) {
        const int n_kv = d.n_layer_kv_from_start;
        check_range("layers with keys and values", n_kv, 2, n_layer);
        for (int il = n_kv; il < n_layer; ++il) {
            const int  il_kv    = n_kv - (d.is_swa(il) ? 2 : 1);
            const auto of_layer = " of layer " + std::to_string(il);
            check_range("shared sliding window" + of_layer,  d.is_swa(il_kv),    d.is_swa(il),    d.is_swa(il));
            check_range("shared key-value heads" + of_layer, d.n_head_kv(il_kv), d.n_head_kv(il), d.n_head_kv(il));
        }
    }
}

static void check_vocabulary(const llama_vocab & drafter, const llama_vocab & target) {
    check_same("vocabulary size", target.n_tokens(), drafter.n_tokens());
    check_same("vocabulary type", target.get_type(), drafter.get_type());
    check_same("adding BOS",      target.get_add_bos(), drafter.get_add_bos());
    check_same("adding EOS",      target.get_add_eos(), drafter.get_add_eos());
    if (target.get_add_bos()) {
        check_same("BOS", target.token_bos(), drafter.token_bos());
    }
    if (target.get_add_eos()) {
        check_same("EOS", target.token_eos(), drafter.token_eos());
    }
    for (uint32_t id = 0; id < target.n_tokens(); ++id) {
        if (std::strcmp(target.token_get_text(id), drafter.token_get_text(id)) != 0) {
            throw std::runtime_error(format("the drafter is not one for this target: token %u differs", id));
        }
    }
}

// DFlash, also with the heads of DSpark and DFlash 2
static void check_dflash(const llama_model & drafter, const llama_model & target) {
    const auto & d = drafter.hparams;
    const int64_t n_vocab = drafter.vocab.n_tokens();

    check_range("the mask token", drafter.vocab.token_mask(), 0, n_vocab - 1);
    if (drafter.gguf_kv.count("dflash.block_size") > 0 || drafter.dspark_markov_w1 != nullptr) {
        check_range("the block size", d.dflash_block_size, 2, 1024);
    }
    const bool has_selector = drafter.dflash_selector_hidden != nullptr;
    check_range("the selector's candidates", d.dflash_selector_top_k, has_selector, has_selector ? std::min<int64_t>(n_vocab, 1024) : 0);
    check_range("the selector's rank",       d.dflash_selector_rank,  has_selector, has_selector ? INT32_MAX : 0);
    if (target.hparams.rope_type != LLAMA_ROPE_TYPE_MROPE && d.rope_type == LLAMA_ROPE_TYPE_MROPE) {
        throw std::runtime_error("the drafter is not one for this target: it rotates for several axes");
    }
}

// EAGLE-3 and DFlash, which read the inputs of the target's layers
static void check_tapped(const llama_model & drafter, const llama_model & target) {
    const auto & d = drafter.hparams;
    const auto & t = target.hparams;
    const auto & taps = drafter.target_layer_ids;

    check_range("target layers", taps.size(), 1, LLAMA_MAX_LAYERS);
    check_same("hidden size of all target layers", (int64_t) taps.size()*t.n_embd, d.n_embd_inp_enc());
    // behind its last layer a target has what EAGLE-3 reads, and not what DFlash does
    const int64_t last = (int64_t) t.n_layer() - (drafter.arch == LLM_ARCH_EAGLE3 ? 0 : 1);
    for (const int32_t il : taps) {
        check_range("a target layer", il, 0, last);
    }

    if (drafter.tok_embd == nullptr || drafter.output == nullptr) {
        check_same("hidden size", t.n_embd, d.n_embd);
    }
    if (drafter.tok_embd != nullptr) {
        check_same("token embeddings", drafter.vocab.n_tokens(), drafter.tok_embd->ne[1]);
    }
    if (drafter.d2t != nullptr) {
        const ggml_tensor * output = drafter.output ? drafter.output : target.output;
        check_same("drafted tokens", output ? output->ne[1] : 0, drafter.d2t->ne[0]);
    }
}

void llama_mtp_check_pair(const llama_model & drafter, const llama_context * ctx) {
    const llama_model * target = ctx ? llama_get_model(ctx) : nullptr;

    if (drafter.arch == LLM_ARCH_GEMMA4_ASSISTANT) {
        if (target != nullptr) {
            check_heads(drafter, *target);
        }
        return;
    }
    if (drafter.gguf_kv.count(LLAMA_MTP_KEY_EMBEDDED) == 0) {
        return;
    }

    check_attention(drafter);
    if (target == nullptr) {
        return;
    }
    check_vocabulary(drafter.vocab, target->vocab);
    if (drafter.arch == LLM_ARCH_EAGLE3 || drafter.arch == LLM_ARCH_DFLASH) {
        check_tapped(drafter, *target);
    }
    if (drafter.arch == LLM_ARCH_DFLASH) {
        check_dflash(drafter, *target);
    }
}

int32_t llama_mtp_drafter_devices(const llama_model * target, ggml_backend_dev_t * devices, int32_t n_max) {
    const auto & t = target->hparams;
    if (target->arch != LLM_ARCH_GEMMA4 || t.n_layer() < 2) {
        return -1;
    }

    // the last layers may share keys and values themselves, of those before `n_kv`
    const int n_kv = std::min(t.n_layer_kv_from_start < 0 ? INT32_MAX : t.n_layer_kv_from_start, (int32_t) t.n_layer());

    if (n_kv < 2) {
        return -1;
    }

    int32_t n = 0;
    for (const bool is_swa : { true, false }) {
        const ggml_backend_dev_t dev = target->dev_layer(std::min(shared_layer(*target, is_swa), n_kv - (is_swa ? 2 : 1)));
        const auto type = ggml_backend_dev_type(dev);
        if (type == GGML_BACKEND_DEVICE_TYPE_META) {
            return -1;
        }
        if (type != GGML_BACKEND_DEVICE_TYPE_CPU && std::find(devices, devices + std::min(n, n_max), dev) == devices + std::min(n, n_max)) {
            if (n < n_max) {
                devices[n] = dev;
            }
            n++;
        }
    }
    return n;
}
