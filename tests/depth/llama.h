// What common/mtp-depth.cpp needs of llama.h, so that it compiles without llama.cpp.
#pragma once

#include <cstdint>

typedef int32_t llama_seq_id;
typedef int32_t llama_token;
