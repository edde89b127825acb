// Stands in for the series' llama-mtp.h: the test passes its LLAMA_MTP_DRAFT_BUCKETS to the compiler.
#pragma once
