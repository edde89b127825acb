// Loads model files with libllama and says how each went, one line a file:
//
//   loader_driver base|heads|pair|overflow FILE...
//
//   FILE <tab> ok | refused | crashed <tab> the first error logged, or what killed it
//
// base: FILE as it is; heads: the drafter inside it; pair: both, with contexts whose graphs are built;
// overflow: one byte behind FILE's name is read, which AddressSanitizer has to see.
// Each file has a process of its own, so that one which crashes does not hide the others; one that takes
// longer than LIMIT_SECONDS counts as crashed.

#include "llama-mtp.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

static const unsigned LIMIT_SECONDS = 60;

static std::string first_error; // of the loader; what gguf says comes before it and is kept too

static void keep_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR && first_error.size() < 2000) {
        first_error += text;
    }
}

static llama_model_params model_params() {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    return params;
}

static llama_context_params context_params() {
    llama_context_params params = llama_context_default_params();
    params.n_ctx     = 64;
    params.n_batch   = 8;
    params.n_ubatch  = 8;
    params.n_threads = params.n_threads_batch = 1;
    return params;
}

static bool load(const std::string & what, const char * path) {
    llama_model * base = nullptr, * heads = nullptr;
    llama_context * target = nullptr, * drafter = nullptr;

    if (what != "heads") {
        base = llama_model_load_from_file(path, model_params());
    }
    if (what != "base" && (base || what == "heads")) {
        heads = llama_model_load_mtp_from_file(path, model_params());
    }
    bool ok = (base || what == "heads") && (heads || what == "base");

    if (ok && what == "pair") {
        llama_context_params params = context_params();
        target = llama_init_from_model(base, params);
        const char * type = llama_mtp_file_spec_type(path);
        params.ctx_type  = type && !strcmp(type, "draft-mtp") ? LLAMA_CONTEXT_TYPE_MTP : LLAMA_CONTEXT_TYPE_DEFAULT;
        params.ctx_other = target;
        drafter = target ? llama_init_from_model(heads, params) : nullptr;
        ok = drafter != nullptr;
    }

    llama_free(drafter);
    llama_free(target);
    llama_model_free(heads);
    llama_model_free(base);
    return ok;
}

static int child(const std::string & what, const char * path) {
    alarm(LIMIT_SECONDS);
    if (what == "overflow") {
        const volatile char * copy = strdup(path);
        return copy[strlen(path) + 1] & 0;
    }
    llama_log_set(keep_errors, nullptr);
    const bool has_heads = llama_mtp_file_has_heads(path);
    const bool ok        = load(what, path);
    if (ok && what != "base" && !has_heads) {
        first_error = "its heads were loaded, though it is said to have none";
    }
    for (char & c : first_error) {
        c = c == '\n' || c == '\t' ? ' ' : c;
    }
    printf("%s\t%s\t%s\n", path, ok ? "ok" : "refused", first_error.c_str());
    return fflush(stdout) == 0 ? 0 : 1;
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: loader_driver base|heads|pair|overflow FILE...\n");
        return 2;
    }
    for (int i = 2; i < argc; ++i) {
        fflush(stdout);
        const pid_t pid = fork();
        if (pid == 0) {
            exit(child(argv[1], argv[i])); // and the leak checker looks
        }
        int status = 0;
        waitpid(pid, &status, 0);
        if (WIFSIGNALED(status)) {
            printf("%s\tcrashed\t%s\n", argv[i], strsignal(WTERMSIG(status)));
        } else if (WEXITSTATUS(status) != 0) {
            printf("%s\tcrashed\texit code %d\n", argv[i], WEXITSTATUS(status));
        }
    }
    return 0;
}
