#include "mtp-options.h"

#include "common.h"

void common_mtp_add_options(const std::function<void(common_arg)> & add_opt, const common_params & defaults) {
    const auto add = [&](const char * on, const char * off, const char * help, const char * env, bool value,
            void (* set)(common_params &, bool)) {
        add_opt(common_arg({ on }, { off }, string_format("%s (default: %s)", help, value ? "enabled" : "disabled"), set)
                .set_spec().set_examples({ LLAMA_EXAMPLE_SPECULATIVE, LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_CLI }).set_env(env));
    };
    const auto & mtp = defaults.speculative.draft.mtp;

    add("--spec-draft-one-graph", "--no-spec-draft-one-graph",
            "draft all tokens of a round in one compute graph (Gemma 4's MTP heads)",
            "LLAMA_ARG_SPEC_DRAFT_ONE_GRAPH", mtp.one_graph,
            [](common_params & params, bool value) { params.speculative.draft.mtp.one_graph = value; });
    add("--spec-draft-auto-depth", "--no-spec-draft-auto-depth",
            "draft as many tokens, up to --spec-draft-n-max, as measured acceptance and costs suggest; else always the most",
            "LLAMA_ARG_SPEC_DRAFT_AUTO_DEPTH", mtp.auto_depth,
            [](common_params & params, bool value) { params.speculative.draft.mtp.auto_depth = value; });
    add("--spec-draft-coupled", "--no-spec-draft-coupled",
            "above temperature 0, the target and Gemma 4's MTP heads draw with the same noise: more drafts stand, and a seed gives another text, the same with and without drafts",
            "LLAMA_ARG_SPEC_DRAFT_COUPLED", defaults.sampling.coupled,
            [](common_params & params, bool value) { params.sampling.coupled = value; });

    add_opt(common_arg({ "--spec-stats" }, "FNAME", "write statistics of speculative decoding as JSON to this file, - for the standard output",
            [](common_params & params, const std::string & value) { params.speculative.draft.mtp.stats_path = value; })
            .set_spec().set_examples({ LLAMA_EXAMPLE_SPECULATIVE }));
}
