#include "mtp-fit.h"

#include "mtp-device.h"

#include <algorithm>
#include <stdexcept>

bool common_mtp_reads_target(const common_params_speculative & params) {
    return params.has_dft() && std::any_of(params.types.begin(), params.types.end(), [](common_speculative_type type) {
        return type == COMMON_SPECULATIVE_TYPE_DRAFT_MTP || type == COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3 ||
            type == COMMON_SPECULATIVE_TYPE_DRAFT_DFLASH || type == COMMON_SPECULATIVE_TYPE_DRAFT_DSPARK;
    });
}

namespace {

// lets messages from a level on pass, like the measurements themselves
struct quiet_log {
    ggml_log_callback callback;
    void *            user_data;
    ggml_log_level    level;

    explicit quiet_log(ggml_log_level level) : level(level) {
        llama_log_get(&callback, &user_data);
        llama_log_set([](ggml_log_level level, const char * text, void * user_data) {
            const auto * self = (const quiet_log *) user_data;
            self->callback(level >= self->level ? level : GGML_LOG_LEVEL_DEBUG, text, self->user_data);
        }, this);
    }

    ~quiet_log() { llama_log_set(callback, user_data); }
};

} // namespace

void common_mtp_fit_target::prepare(const common_fit_extra_model & extra, const char * path_model, const llama_model_params & mparams,
        const llama_context_params & cparams, ggml_log_level log_level) {
    if (!extra.reads_target) {
        return;
    }
    const quiet_log quiet(log_level);

    if (!model) {
        auto params = mparams;
        params.no_alloc  = true;
        params.load_mode = LLAMA_LOAD_MODE_NONE;
        model.reset(llama_model_load_from_file(path_model, params));
    }
    context.reset(model ? llama_init_from_model(model.get(), cparams) : nullptr);
    if (!context) {
        throw std::runtime_error("failed to create the context that it reads from");
    }
    extra.cparams->ctx_other = context.get();

    common_mtp_place_drafter(*extra.reads_target, model.get(), /*quiet =*/ true);
    *extra.mparams = common_model_params_to_llama(*extra.reads_target);
}
