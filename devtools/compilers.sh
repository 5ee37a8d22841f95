#!/usr/bin/env bash
# Build the operator library and the C++ tests with each compiler, and run the tests: one line a compiler.
#
#   devtools/compilers.sh <torch's folder> [compiler ...]      without names: every g++-N and clang++-N on PATH
#
# Each builds in build/compilers/<compiler>, which holds its log, too. Ends with 1 if any of them fails.
set -uo pipefail
cd "$(dirname "$0")/.."
torch=${1:?the folder of the torch package, for its headers}
shift
[ $# -gt 0 ] || mapfile -t found < <(compgen -c | grep -E '^(g|clang)\+\+-[0-9]+$' | sort -Vu)
failed=0
for compiler in "$@" ${found[@]+"${found[@]}"}; do
  build=build/compilers/$(basename "$compiler")
  mkdir -p "$build"
  if {
    cmake -S . -B "$build" -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DFGD_TORCH_DIR="$torch" \
      -DFGD_BUILD_TESTS=ON -DFGD_CUDA=OFF &&
      cmake --build "$build" && (cd "$build" && ctest --output-on-failure)
  } > "$build/log.txt" 2>&1; then
    tests=$(grep 'tests passed' "$build/log.txt")
    result="$tests, $(grep -c 'warning:' "$build/log.txt") warnings"
  else
    result="FAILS, see $build/log.txt"
    failed=1
  fi
  printf '%-12s %-24s %s\n' "$(basename "$compiler")" "$("$compiler" -dumpfullversion -dumpversion)" "$result"
done
exit $failed
