// The clock that common/mtp-depth.cpp reads: the simulation's.
#pragma once

#include <cstdint>

int64_t ggml_time_us();
