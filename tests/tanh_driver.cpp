// The tangent of patches/cpu of the floats on standard input, on standard output.

#include "vec-tanh.h"

#include <cstdio>

int main() {
    float value;
    while (std::fread(&value, sizeof(value), 1, stdin) == 1) {
        const float tangent = tanh_f32(value);
        if (std::fwrite(&tangent, sizeof(tangent), 1, stdout) != 1) {
            return 1;
        }
    }
    return 0;
}
