#pragma once

#include "arg.h"

#include <functional>

// the command line of common_mtp_params
void common_mtp_add_options(const std::function<void(common_arg)> & add_opt, const common_params & defaults);
