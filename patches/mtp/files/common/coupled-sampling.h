#pragma once

// Coupled sampling: the target and its drafter draw with the same noise (Daliri, Musco and Suresh 2024,
// arXiv:2408.07978). A token is argmax(logit/temperature + noise), and the noise (Gumbel) is a function of seed, position
// and token alone. Every token is a sample of the target's own distribution, one seed gives one text whatever is drafted,
// and the drafter often draws what the target will draw.
//
// The drafter's device gets one value for all tokens whose ids have the same remainder by LLAMA_MTP_DRAFT_BUCKETS. Noise that
// two candidates share would not give the target's distribution, so that only the most probable candidate of a bucket
// takes the bucket's value, and the others take their own. Which one that is follows from the logits, not from the noise.
//
// gguf_mtp/runtime/coupled.py has the same numbers.

#include "llama.h"

#include <cstdint>

// the noise of each bucket at a position: F32 [LLAMA_MTP_DRAFT_BUCKETS]
void common_coupled_noise(uint32_t seed, int64_t position, float * noise);

// Ends a sampler chain in the place of `dist`: shows the same probabilities, and chooses with the noise. The position is
// the number of tokens accepted. temp: by which the chain divides the logits; the drafter needs it.
llama_sampler * common_coupled_init(uint32_t seed, float temp);

struct common_coupled_draw {
    uint32_t seed;     // the one drawn from, where a random one was asked for
    int64_t  position; // of the next token
    float    temp;
};

// what a chain's next draw depends on beside the logits; false if it does not end in this sampler
bool common_coupled_next(const llama_sampler * chain, common_coupled_draw & draw);

// the seed that a chain draws from, with this sampler or upstream's
uint32_t common_coupled_seed(const llama_sampler * chain);
