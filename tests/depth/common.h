// What common/mtp-depth.cpp needs of common.h, so that it compiles without llama.cpp.
#pragma once

#include <cstdio>
#include <string>

template <typename... T>
std::string string_format(const char * format, T... values) {
    char text[4096];
    snprintf(text, sizeof(text), format, values...);
    return text;
}
