#include "llama-mtp-pair.h"

#include "llama-impl.h"
#include "llama-model.h"

#include <stdexcept>
#include <string>

static void check_same(const std::string & what, int64_t target, int64_t drafter) {
    if (target != drafter) {
        throw std::runtime_error(format("the drafter is not one for this target: %s: expected %lld, found %lld",
                    what.c_str(), (long long) target, (long long) drafter));
    }
}

void llama_mtp_check_pair(const llama_model & drafter, const llama_model & target) {
    const auto & d = drafter.hparams;
    const auto & t = target.hparams;

    check_same("hidden size",           t.n_embd,       d.n_embd_out());
    check_same("target's output width", t.n_embd_out(), d.n_embd_out());
    check_same("vocabulary size", target.vocab.n_tokens(), drafter.vocab.n_tokens());

    if (drafter.nextn_proj_pre == nullptr || !d.is_swa_any()) {
        throw std::runtime_error("the drafter has no layers, or none with a sliding window");
    }

    for (int il = 0; il < (int) d.n_layer_nextn; ++il) {
        // the rule by which the key-value cache is shared
        const int  il_target = llama_model_n_layer(&target) - (d.is_swa(il) ? 2 : 1);
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
