# The CUDA part: a shared object of its own beside the library, which loads it on first use. The
# runtime is linked statically, so that it needs nothing but a driver, and that only when it is used.
set(LLAVA_FA_CUDA AUTO CACHE STRING "CUDA part: AUTO (if nvcc is found), ON or OFF")
set_property(CACHE LLAVA_FA_CUDA PROPERTY STRINGS AUTO ON OFF)
set(LLAVA_FA_CUDA_ARCHITECTURES "80;86-real;89-real;90-real;100-real;120"
    CACHE STRING "Architectures of the CUDA part; the default has PTX of the oldest and the newest")

# Host code that plans products and compression; the C++ tests run the kernels with it, without CUDA.
set(LLAVA_FA_CUDA_HOST_SOURCES cpp/src/cuda/compression_plan.cpp cpp/src/cuda/fft_plan.cpp
                               cpp/src/cuda/product_plan.cpp)
set(LLAVA_FA_CUDA_KERNELS
    cpp/src/cuda/compression.cu cpp/src/cuda/feedback.cu cpp/src/cuda/low_rank.cu cpp/src/cuda/matmul.cu
    cpp/src/cuda/point_product.cu cpp/src/cuda/spectrum.cu cpp/src/cuda/trellis_product.cu
    cpp/src/cuda/trellis_search.cu)

# NVIDIA's wheels lay nvcc out otherwise than a toolkit: where they are installed for the Python of the
# build, unless another compiler is named, theirs is named, and told where its libraries are.
function(llava_fa_find_nvcc_in_wheels)
  if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX} OR NOT Python_EXECUTABLE)
    return()
  endif()
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import nvidia; print(';'.join(nvidia.__path__))"
    OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  foreach(package IN LISTS packages)
    set(root "${package}/cu13")
    if(EXISTS "${root}/bin/nvcc" AND EXISTS "${root}/nvvm/bin/cicc"
       AND EXISTS "${root}/include/crt" AND EXISTS "${root}/lib/libcudart_static.a")
      unset(CMAKE_CUDA_COMPILER CACHE)  # that none was found before the wheels were installed
      set(ENV{CUDACXX} "${root}/bin/nvcc")
      set(ENV{CUDAFLAGS} "$ENV{CUDAFLAGS} -L${root}/lib")
      if(CMAKE_CUDA_FLAGS)  # in whose place CMake does not read the environment
        set(CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS} -L${root}/lib" CACHE STRING "Flags of nvcc" FORCE)
      endif()
      return()
    endif()
  endforeach()
endfunction()

set(LLAVA_FA_OLDEST_NVCC 12.8)  # the first that knows architecture 120
set(LLAVA_FA_CUDA_SUMMARY "CUDA left out (LLAVA_FA_CUDA=${LLAVA_FA_CUDA})")
set(LLAVA_FA_BUILDS_CUDA FALSE)
if(NOT LLAVA_FA_CUDA STREQUAL OFF)
  llava_fa_find_nvcc_in_wheels()
endif()
if(LLAVA_FA_CUDA STREQUAL ON)
  enable_language(CUDA)
  set(LLAVA_FA_BUILDS_CUDA TRUE)
elseif(LLAVA_FA_CUDA STREQUAL AUTO AND NOT LLAVA_FA_SANITIZE)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    set(LLAVA_FA_CUDA_SUMMARY "CUDA left out, as nvcc was not found")
  elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS LLAVA_FA_OLDEST_NVCC)
    set(LLAVA_FA_CUDA_SUMMARY "CUDA left out, as nvcc is older than ${LLAVA_FA_OLDEST_NVCC}")
  elseif(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(LLAVA_FA_CUDA_SUMMARY "CUDA left out, as CMake ${CMAKE_VERSION} is too old for nvcc's C++20")
  else()
    set(LLAVA_FA_BUILDS_CUDA TRUE)
  endif()
elseif(NOT LLAVA_FA_CUDA MATCHES "^(AUTO|OFF)$")
  message(FATAL_ERROR "LLAVA_FA_CUDA is \"${LLAVA_FA_CUDA}\", expected AUTO, ON or OFF")
endif()
if(LLAVA_FA_BUILDS_CUDA)
  add_library(llava_fa_cuda MODULE cpp/src/cuda/backend.cpp ${LLAVA_FA_CUDA_HOST_SOURCES}
                                   ${LLAVA_FA_CUDA_KERNELS})
  target_link_libraries(llava_fa_cuda PRIVATE llava_fa llava_fa_options)
  target_include_directories(llava_fa_cuda SYSTEM
                             PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  # Registers are planned: a kernel that spills them is an error, like a warning.
  target_compile_options(
    llava_fa_cuda
    PRIVATE
      $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr
      -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas
      -Xptxas=--warn-on-spills,--warn-on-local-memory-usage
      $<$<BOOL:${LLAVA_FA_WARNINGS_AS_ERRORS}>:-Werror=all-warnings
      -Xcompiler=-Werror
      -Xptxas=--warning-as-error>>)
  set_target_properties(
    llava_fa_cuda
    PROPERTIES PREFIX lib CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static
               CUDA_VISIBILITY_PRESET hidden CUDA_ARCHITECTURES "${LLAVA_FA_CUDA_ARCHITECTURES}")
  install(TARGETS llava_fa_cuda LIBRARY DESTINATION ${LLAVA_FA_LIBRARY_DIR})
  list(JOIN LLAVA_FA_CUDA_ARCHITECTURES " " LLAVA_FA_CUDA_SUMMARY)
  string(PREPEND LLAVA_FA_CUDA_SUMMARY "CUDA for ")
endif()
