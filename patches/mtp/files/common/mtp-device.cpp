#include "mtp-device.h"

#include "common.h"
#include "log.h"

#include "llama-mtp.h"

#include <algorithm>
#include <string>
#include <vector>

static std::string names(const std::vector<ggml_backend_dev_t> & devices) {
    std::string result;
    for (const auto dev : devices) {
        if (dev != nullptr) {
            result += (result.empty() ? "" : ", ") + std::string(ggml_backend_dev_name(dev));
        }
    }
    return result.empty() ? "the CPU" : result;
}

void common_mtp_place_drafter(common_params & params, const llama_model * target, bool quiet) {
    const auto & spec = params.speculative;
    const bool is_mtp = std::find(spec.types.begin(), spec.types.end(), COMMON_SPECULATIVE_TYPE_DRAFT_MTP) != spec.types.end();

    std::vector<ggml_backend_dev_t> devices(2, nullptr);
    const int32_t n = is_mtp && spec.has_dft() ? llama_mtp_drafter_devices(target, devices.data(), devices.size()) : -1;
    if (n < 0) {
        return;
    }
    devices.resize(n);

    const auto & given = spec.draft.devices;
    if (given.empty()) {
        if (n == 0 && spec.draft.n_gpu_layers > 0) {
            return; // to a GPU by request
        }
    } else {
        const bool has_all = std::all_of(devices.begin(), devices.end(), [&](ggml_backend_dev_t dev) {
            return std::find(given.begin(), given.end(), dev) != given.end();
        });
        if (has_all || params.no_kv_offload) {
            return;
        }
        if (!quiet) {
            LOG_WRN("%s: the MTP heads read keys and values on %s: drafting there instead of on %s\n", __func__,
                    names(devices).c_str(), names(given).c_str());
        }
    }

    devices.push_back(nullptr); // ends the list
    params.devices    = devices;
    params.split_mode = LLAMA_SPLIT_MODE_LAYER;
    params.main_gpu   = 0;
    std::fill(std::begin(params.tensor_split), std::end(params.tensor_split), 0.0f);
    LOG_DBG("%s: the MTP heads are computed on %s\n", __func__, names(devices).c_str());
}
