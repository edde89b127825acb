// Draws with the sampler of common/coupled-sampling.cpp, without llama.cpp around it.
//
//     draws noise SEED POSITION            prints the noise of every bucket
//     draws sample SEED POSITION TEMP N    reads N logits (F32) from stdin and prints the token chosen
//
// Only what the sampler calls is defined here: a `dist` that holds a seed and chooses nothing.

#include "coupled-sampling.h"
#include "llama-mtp.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

llama_sampler * llama_sampler_init(llama_sampler_i * iface, void * ctx) {
    return new llama_sampler { iface, ctx };
}

llama_sampler * llama_sampler_init_dist(uint32_t seed) {
    return new llama_sampler { nullptr, new uint32_t(seed) };
}

uint32_t llama_sampler_get_seed(const llama_sampler * smpl) {
    return *(const uint32_t *) smpl->ctx;
}

void llama_sampler_accept(llama_sampler * smpl, llama_token token) {
    if (smpl->iface) {
        smpl->iface->accept(smpl, token);
    }
}

void llama_sampler_apply(llama_sampler * smpl, llama_token_data_array * cur_p) {
    if (smpl->iface) {
        smpl->iface->apply(smpl, cur_p);
    }
}

void llama_sampler_reset(llama_sampler *) {}

llama_sampler * llama_sampler_clone(const llama_sampler * smpl) {
    return new llama_sampler(*smpl);
}

void llama_sampler_free(llama_sampler *) {}

int llama_sampler_chain_n(const llama_sampler *) {
    return 0;
}

llama_sampler * llama_sampler_chain_get(llama_sampler *, int32_t) {
    return nullptr;
}

static int print_noise(uint32_t seed, int64_t position) {
    std::vector<float> noise(LLAMA_MTP_DRAFT_BUCKETS);
    common_coupled_noise(seed, position, noise.data());
    for (const float value : noise) {
        printf("%.9g\n", value);
    }
    return 0;
}

static int print_sample(uint32_t seed, int64_t position, float temp, size_t n) {
    std::vector<float> logits(n);
    if (fread(logits.data(), sizeof(float), n, stdin) != n) {
        return 1;
    }
    std::vector<llama_token_data> data;
    for (size_t i = 0; i < n; ++i) {
        data.push_back({ (llama_token) i, logits[i]/temp, 0.0f });
    }
    llama_sampler * sampler = common_coupled_init(seed, temp);
    for (int64_t i = 0; i < position; ++i) {
        llama_sampler_accept(sampler, 0);
    }
    llama_token_data_array candidates = { data.data(), n, -1, false };
    llama_sampler_apply(sampler, &candidates);
    printf("%d\n", data[candidates.selected].id);
    return 0;
}

int main(int argc, char ** argv) {
    if (argc == 4 && strcmp(argv[1], "noise") == 0) {
        return print_noise(strtoul(argv[2], nullptr, 10), atoll(argv[3]));
    }
    if (argc == 6 && strcmp(argv[1], "sample") == 0) {
        return print_sample(strtoul(argv[2], nullptr, 10), atoll(argv[3]), strtof(argv[4], nullptr), strtoul(argv[5], nullptr, 10));
    }
    return 2;
}
