# The CUDA kernels, as the library fgd_cuda; sets FGD_WITH_CUDA, and FGD_CUDA_BUILD to what was built or
# FGD_CUDA_MISSING to why nothing was. Included by CMakeLists.txt, decided by:
#
#   FGD_NO_CUDA=1 or -DFGD_CUDA=OFF     no
#   FGD_FORCE_CUDA=1 or -DFGD_CUDA=ON   yes; without nvcc that is an error
#   none of them (AUTO)                 yes where there is an nvcc of CUDA 12 or later
#   TORCH_CUDA_ARCH_LIST="8.0;9.0+PTX"  for these architectures instead of all
#
# setup.py turns a build that fails with AUTO into one without CUDA, and hands on the reason (FGD_CUDA_REASON).
# Never decided by whether a GPU is visible here: the machine that builds is often not the one that runs.
set(FGD_WITH_CUDA OFF)

set(fgd_cuda_wanted ${FGD_CUDA})
if(FGD_CUDA STREQUAL "AUTO")
  if("$ENV{FGD_NO_CUDA}" STREQUAL "1")
    set(fgd_cuda_wanted OFF)
  elseif("$ENV{FGD_FORCE_CUDA}" STREQUAL "1")
    set(fgd_cuda_wanted ON)
  endif()
endif()
set(FGD_CUDA_BUILD "")
set(FGD_CUDA_MISSING "")
macro(fgd_without_cuda reason)
  set(FGD_CUDA_MISSING "${reason}")
  message(STATUS "FGD: CPU kernels alone; ${reason}")
  return()
endmacro()
if(fgd_cuda_wanted STREQUAL "OFF")
  if(FGD_CUDA_REASON)
    fgd_without_cuda("${FGD_CUDA_REASON}")
  endif()
  fgd_without_cuda("that was asked for (FGD_NO_CUDA=1 or FGD_CUDA=OFF)")
endif()

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)  # what an earlier run did not find may be there now
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  find_program(FGD_NVCC nvcc HINTS ENV CUDACXX)
  set(fgd_reason "no nvcc was found (PATH, CUDACXX)")
  if(FGD_NVCC)
    set(fgd_reason "${FGD_NVCC} cannot compile with this C++ compiler (${CMAKE_CXX_COMPILER})")
  endif()
  if(fgd_cuda_wanted STREQUAL "ON")
    message(FATAL_ERROR "FGD: the CUDA kernels were asked for, but ${fgd_reason}")
  endif()
  fgd_without_cuda("${fgd_reason}")
endif()

# "8.0;9.0a+PTX" to "80-real;90a-real;90a-virtual".
function(fgd_architectures_of list out)
  string(REGEX REPLACE "[ ,]+" ";" entries "${list}")
  set(found "")
  foreach(entry IN LISTS entries)
    if(NOT entry MATCHES "^([0-9]+)\\.([0-9]+[af]?)(\\+PTX)?$")
      message(FATAL_ERROR "TORCH_CUDA_ARCH_LIST: expected numbers such as 8.0 or 9.0+PTX, got '${entry}'")
    endif()
    list(APPEND found "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-real")
    if(CMAKE_MATCH_3)
      list(APPEND found "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-virtual")
    endif()
  endforeach()
  set(${out} "${found}" PARENT_SCOPE)
endfunction()

set(CMAKE_CUDA_ARCHITECTURES OFF)  # each target's own
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0 AND NOT fgd_cuda_wanted STREQUAL "ON")
  fgd_without_cuda("nvcc is ${CMAKE_CUDA_COMPILER_VERSION}, expected 12.0 or later")
endif()
find_package(CUDAToolkit REQUIRED)
if(FGD_CUDA_ARCHITECTURES)
  set(fgd_architectures ${FGD_CUDA_ARCHITECTURES})
elseif(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
  fgd_architectures_of("$ENV{TORCH_CUDA_ARCH_LIST}" fgd_architectures)
else()
  # Code serves later minor numbers, too (86 serves 87); PTX serves all later ones: the list ends with some.
  set(fgd_architectures 75-real 80-real 86-real 89-real 90-real)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
    list(APPEND fgd_architectures 100-real 110-real 120-real)
  elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND fgd_architectures 100-real 120-real)  # 110, then called 101, has PTX
  endif()
  list(APPEND fgd_architectures 80-virtual)
endif()
message(STATUS "FGD: CPU and CUDA kernels, for ${fgd_architectures} (nvcc ${CMAKE_CUDA_COMPILER_VERSION})")

file(GLOB fgd_cuda_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cu)
add_library(fgd_cuda STATIC ${fgd_cuda_sources} ${CMAKE_CURRENT_LIST_DIR}/plan.cpp)
target_include_directories(fgd_cuda PUBLIC ${CMAKE_CURRENT_LIST_DIR} ${CMAKE_CURRENT_LIST_DIR}/../include)
# Code of 80 and later is assembled from one PTX, 80's, which is what the tests run and count; nothing here asks for more.
# A compiler's pass over the sources for each would take half of the time.
set(fgd_by_cmake "")
foreach(architecture IN LISTS fgd_architectures)
  if(architecture MATCHES "^([0-9]+)-real$" AND CMAKE_MATCH_1 GREATER_EQUAL 80)
    target_compile_options(
      fgd_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_80,code=sm_${CMAKE_MATCH_1}>)
  else()
    list(APPEND fgd_by_cmake ${architecture})
  endif()
endforeach()
if(NOT fgd_by_cmake)
  set(fgd_by_cmake OFF)
endif()
set_target_properties(
  fgd_cuda PROPERTIES CUDA_ARCHITECTURES "${fgd_by_cmake}" CUDA_STANDARD 17 CUDA_VISIBILITY_PRESET hidden
                      CUDA_RUNTIME_LIBRARY Static)
set(FGD_WITH_CUDA ON)
string(REPLACE ";" ", " FGD_CUDA_BUILD "nvcc ${CMAKE_CUDA_COMPILER_VERSION}: ${fgd_architectures}")
