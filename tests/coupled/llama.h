// What common/coupled-sampling.cpp needs of llama.h, so that it compiles without llama.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

typedef int32_t llama_token;

struct llama_token_data {
    llama_token id;
    float       logit;
    float       p;
};

struct llama_token_data_array {
    llama_token_data * data;
    size_t             size;
    int64_t            selected;
    bool               sorted;
};

struct llama_sampler;

struct llama_sampler_i {
    const char *    (*name)  (const llama_sampler * smpl);
    void            (*accept)(llama_sampler * smpl, llama_token token);
    void            (*apply) (llama_sampler * smpl, llama_token_data_array * cur_p);
    void            (*reset) (llama_sampler * smpl);
    llama_sampler * (*clone) (const llama_sampler * smpl);
    void            (*free)  (llama_sampler * smpl);
};

struct llama_sampler {
    llama_sampler_i * iface;
    void            * ctx;
};

llama_sampler * llama_sampler_init     (llama_sampler_i * iface, void * ctx);
llama_sampler * llama_sampler_init_dist(uint32_t seed);
uint32_t        llama_sampler_get_seed (const llama_sampler * smpl);
void            llama_sampler_accept   (llama_sampler * smpl, llama_token token);
void            llama_sampler_apply    (llama_sampler * smpl, llama_token_data_array * cur_p);
void            llama_sampler_reset    (llama_sampler * smpl);
llama_sampler * llama_sampler_clone    (const llama_sampler * smpl);
void            llama_sampler_free     (llama_sampler * smpl);
int             llama_sampler_chain_n  (const llama_sampler * chain);
llama_sampler * llama_sampler_chain_get(llama_sampler * chain, int32_t i);
