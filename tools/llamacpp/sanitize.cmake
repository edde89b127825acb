# Included behind llama.cpp's project(): what reads model files is built with AddressSanitizer and
# UBSan. All else stays as it is, and so comes out of ccache where another variant has been built.

set(MTP_SANITIZE -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g1)

function(mtp_sanitize target directory)
    list(TRANSFORM ARGN PREPEND ${directory}/ OUTPUT_VARIABLE files)
    set_source_files_properties(${files} TARGET_DIRECTORY ${target} PROPERTIES COMPILE_OPTIONS "${MTP_SANITIZE}")
    target_link_options(${target} PRIVATE ${MTP_SANITIZE})
endfunction()

# At the end of the top directory, where all targets are known.
cmake_language(DEFER CALL mtp_sanitize llama ${CMAKE_SOURCE_DIR}/src
    llama-hparams.cpp llama-mmap.cpp llama-model-loader.cpp llama-mtp-pair.cpp llama-mtp-source.cpp llama-vocab.cpp
    models/gemma4-assistant.cpp models/gemma4-assistant-draft.cpp models/gemma4-assistant-ordered-head.cpp)
cmake_language(DEFER CALL mtp_sanitize ggml-base ${CMAKE_SOURCE_DIR}/ggml/src gguf.cpp)
