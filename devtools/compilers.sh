#!/usr/bin/env bash
# Build the operator library and the C++ tests with each compiler, and run the tests: one line a compiler.
#
#   devtools/compilers.sh <torch's folder> [compiler ...]      without names: every g++-N and clang++-N on PATH
#
# g++-12@aarch64 and clang++-16@aarch64 are cross-compilers (devtools/aarch64.cmake): the C++ tests alone, in an emulator.
# Each builds in build/compilers/<compiler>, which holds its log, too. Ends with 1 if any of them fails.
set -uo pipefail
cd "$(dirname "$0")/.."
torch=${1:?the folder of the torch package, for its headers}
shift
if [ $# -eq 0 ]; then
  mapfile -t found < <(compgen -c | grep -E '^(g|clang)\+\+-[0-9]+$' | sort -Vu)
  if command -v qemu-aarch64 > /dev/null; then
    mapfile -t -O ${#found[@]} found < <(compgen -c | sed -nE 's/^aarch64-linux-gnu-(g\+\+-[0-9]+)$/\1@aarch64/p' | sort -Vu)
  fi
  set -- ${found[@]+"${found[@]}"}
fi
failed=0
for name in "$@"; do
  compiler=${name%@aarch64}
  options=(-DFGD_TORCH_DIR="$torch" -DFGD_CUDA=OFF)
  if [ "$compiler" != "$name" ]; then
    [ "${compiler#g++}" = "$compiler" ] || compiler=aarch64-linux-gnu-$compiler
    options=(-DCMAKE_TOOLCHAIN_FILE="$PWD/devtools/aarch64.cmake" -DFGD_BUILD_OPERATOR=OFF)
  fi
  build=build/compilers/$(basename "$name")
  mkdir -p "$build"
  if {
    cmake -S . -B "$build" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DFGD_BUILD_TESTS=ON "${options[@]}" &&
      cmake --build "$build" && (cd "$build" && ctest --output-on-failure)
  } > "$build/log.txt" 2>&1; then
    tests=$(grep 'tests passed' "$build/log.txt")
    result="$tests, $(grep -c 'warning:' "$build/log.txt") warnings"
  else
    result="FAILS, see $build/log.txt"
    failed=1
  fi
  printf '%-20s %-10s %s\n' "$(basename "$name")" "$("$compiler" -dumpfullversion -dumpversion)" "$result"
done
exit $failed
